"""An ONNX file into a network of TensorRT's: what its parser refuses, in words about the model.

`trt` is the imported binding (`tensorrt` or `tensorrt_rtx_bindings`): both are native
modules without types, hence `Any`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from enginefarm.errors import ParseError
from enginefarm.graph.model.onnx_files import graph_only
from enginefarm.graph.model.walk import nested
from enginefarm.run.refusals import refusal_of
from enginefarm.run.trt import Messages, tidy


def parse_onnx(parser: Any, network: Any, onnx: Path, messages: Messages, toolchain: str) -> None:
    """Parses model and external data into `network`.

    Raises: ParseError, which names the node and its operator.
    """
    parsed = parser.parse_from_file(str(onnx))
    if not parsed or parser.num_errors:
        raise _parse_error(parser, messages, toolchain, onnx)
    # Zero-byte and text files parse as true.
    if network.num_layers == 0 or network.num_outputs == 0:
        raise ParseError(
            f"{onnx.name}: {network.num_layers} layers and {network.num_outputs} outputs after "
            "parsing: this is not a model",
            why=messages.cause(),
            fix="check the file with `onnx.checker.check_model`",
        )


def let_attention_decompose(trt: Any, network: Any) -> None:
    """Lets the builder compute an Attention with several kernels where it has no single one for its
    sizes and types; without this it refuses the network. Older bindings have no such layer."""
    kind = getattr(trt, "IAttentionInputLayer", None)
    for index in range(network.num_layers if kind else 0):
        layer = network.get_layer(index)
        if str(layer.type).rpartition(".")[2] == "ATTENTION_INPUT":
            layer.__class__ = kind  # get_layer returns the base class
            layer.attention.decomposable = True


def _parse_error(parser: Any, messages: Messages, toolchain: str, onnx: Path) -> ParseError:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    if not found:
        return ParseError(f"{toolchain} cannot parse the model", why=messages.cause())
    first = next((error for error in found if error.node_operator()), found[0])
    where = "the model"
    why, fix = tidy(first.desc()) or messages.cause(), "replace the operator in the model"
    if known := refusal_of(why):
        why, fix = f"{known.why}; {why}", known.fix
    name, operator = _node_of(first, onnx)
    if operator:
        where = f"node {name!r} (operator {operator})"
        if why == "false":  # an assertion that says no more
            why = f"its parser does not have the operator {operator}"
    others = sorted({error.node_operator() for error in found} - {operator, ""})
    code = str(first.code()).rpartition(".")[2]
    return ParseError(
        f"{toolchain} cannot parse {where}: {code}",
        why=why,
        fix=fix + (f"; others that it refuses: {', '.join(others)}" if others else ""),
    )


def _node_of(error: Any, onnx: Path) -> tuple[str, str]:
    """Name and operator of the node that a parser's error is about; empty where it is about none.

    A node without a name is called by what it makes. Some errors say only which function of the
    parser failed, such as importScatterElements: the first node of that operator is meant.
    """
    operator: str = error.node_operator()
    if operator and error.node_name():
        return error.node_name(), operator
    failed = re.fullmatch(r"import(\w+)", error.func())
    wanted = operator or (failed[1] if failed else "")
    if not wanted:
        return "", ""
    nodes: list[Any] = [*graph_only(onnx).graph.node]
    same: list[Any] = [node for node in nested(nodes) if node.op_type == wanted]
    if 0 <= error.node() < len(nodes) and nodes[error.node()].op_type == wanted:
        same.insert(0, nodes[error.node()])
    return (same[0].name or str(same[0].output[0]), wanted) if same else ("", operator)
