"""Layers of an engine, as they are written down: what the engine inspector says, in every form.

Four forms are read, and one is ours:

- TensorRT 8.6 to 10: `{"Layers": [{…}], "Bindings": […]}`, one `Format/Datatype` a tensor.
- TensorRT 11: the list of layers alone, `Datatype` and `Format` apart, constants listed.
- A builder that kept names only (any version): strings in the place of layers.
- The network that a parser made, before anything is fused (`network` is true): what can be
  stored of a TensorRT-RTX build, which chooses its kernels on the GPU.

docs/decisions/0190 says which of these were seen on real programs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from pydantic import Field

from enginefarm.errors import CorruptBlob
from enginefarm.schema import Frozen

BITS: dict[str, tuple[str, int]] = {
    # what the inspector, or a binding, calls a type: (what we call it, bits a value)
    "fp32": ("fp32", 32),
    "float": ("fp32", 32),
    "fp16": ("fp16", 16),
    "half": ("fp16", 16),
    "bf16": ("bf16", 16),
    "bfloat16": ("bf16", 16),
    "fp8": ("fp8", 8),
    "fp8e4m3": ("fp8", 8),
    "int8": ("int8", 8),
    "uint8": ("uint8", 8),
    "int4": ("int4", 4),
    "fp4": ("fp4", 4),
    "fp4e2m1": ("fp4", 4),
    "e8m0": ("e8m0", 8),
    "int32": ("int32", 32),
    "int64": ("int64", 64),
    "bool": ("bool", 8),
}
WORD = re.compile(r"[A-Za-z0-9]+")
FROM_ONNX = re.compile(r"\[ONNX Layer: (.*?)(?: \| [^\x1e\x1f]*?)?\](?=[\x1e\x1f+ ]|$)")
"""`[ONNX Layer: /conv/Conv]`, one for each node that a layer was made of (onnx-tensorrt)."""
WRAPPED = re.compile(r"^(?:PWN|fusedPointwiseNode)\((.*)\)$")
FOREIGN = re.compile(r"^\{ForeignNode\[(.*)\]\}$")
UNNAMED = re.compile(r"^\(Unnamed Layer\* \d+\)|^ONNXTRT_|^__my[el]")
REFORMAT = re.compile(r"^Reformatting CopyNode for (?:Input|Output|Network Output) ")
PROFILE = re.compile(r" \[profile \d+\]$")


class Layer(Frozen):
    """One layer. None: the inspector does not say, or a dim is dynamic."""

    name: str
    kind: str = Field(default="", description="CaskConvolution, kgen, Reformat …")
    nodes: tuple[str, ...] = Field(default=(), description="The ONNX nodes behind it.")
    precision: str = Field(
        default="",
        description="Type of its weights, else of its outputs; `a → b` where it converts.",
    )
    tactic: str = ""
    weight_bytes: int | None = None
    output_bytes: int | None = Field(default=None, description="Written by one pass.")
    ms: float | None = Field(default=None, description="Median of a profile, where one is stored.")


class Layers(Frozen):
    """The layers of one engine, in the order in which they run.

    network: they are those of the parsed network; what was fused, and with which tactic, is
    not known.
    """

    layers: tuple[Layer, ...]
    network: bool = False

    @property
    def detailed(self) -> bool:
        """Whether more than names is known."""
        return any(layer.precision or layer.tactic for layer in self.layers)

    def timed(self, ms: Mapping[str, float]) -> Layers:
        """With a profile's medians, in milliseconds, by layer name."""
        timed = (one.model_copy(update={"ms": ms.get(one.name)}) for one in self.layers)
        return self.model_copy(update={"layers": tuple(timed)})


def read_layers(data: bytes, where: str = "layers") -> Layers:
    """The layers of an engine inspector's JSON, of any version.

    where: what the bytes are called in an error. Raises: CorruptBlob for any other content.
    """
    try:
        said: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _not_layers(where, str(error)) from None
    entries, network = said, False
    if isinstance(said, dict):
        known = cast("dict[str, Any]", said)
        entries, network = known.get("Layers"), known.get("Network") is True
    if not isinstance(entries, list):
        raise _not_layers(where, "it is neither a list of layers nor an object with `Layers`")
    return Layers(
        layers=tuple(_layer(one, where) for one in cast("list[Any]", entries)), network=network
    )


def _not_layers(where: str, why: str) -> CorruptBlob:
    return CorruptBlob(
        f"{where}: this is not an engine inspector's JSON",
        why=why[:300],
        fix="give what get_engine_information or trtexec --exportLayerInfo wrote",
    )


def _layer(entry: Any, where: str) -> Layer:
    if isinstance(entry, str):
        name = PROFILE.sub("", entry)
        return Layer(name=name, nodes=_nodes_of_name(name))
    if not isinstance(entry, dict) or not isinstance(cast("Any", entry).get("Name"), str):
        raise _not_layers(where, f"a layer has no `Name`: {str(cast('Any', entry))[:100]}")
    said = cast("dict[str, Any]", entry)
    name = PROFILE.sub("", said["Name"])
    inputs, outputs = _tensors(said, "Inputs"), _tensors(said, "Outputs")
    weights = [*_weights(said), *_tensors(said, "Constants")]
    from_metadata = tuple(dict.fromkeys(FROM_ONNX.findall(str(said.get("Metadata", "")))))
    return Layer(
        name=name,
        kind=str(said.get("LayerType", "")),
        nodes=from_metadata or _nodes_of_name(name),
        precision=_precision(inputs, outputs, weights),
        tactic=_tactic(said),
        weight_bytes=_sum(weights) if weights else None,
        output_bytes=_sum(outputs) if outputs else None,
    )


Tensor = tuple[str, int | None]
"""Type, and bytes; None: a dim is dynamic."""


def _tensors(layer: Mapping[str, Any], field: str) -> list[Tensor]:
    listed = layer.get(field)
    found = cast("list[Any]", listed) if isinstance(listed, list) else []
    return [_tensor(cast("dict[str, Any]", one)) for one in found if isinstance(one, dict)]


def _tensor(said: Mapping[str, Any]) -> Tensor:
    kind, bits = type_of(str(said.get("Datatype") or said.get("Format/Datatype") or ""))
    dims = said.get("Dimensions")
    if not isinstance(dims, list) or not bits:
        return kind, None
    sizes = [one for one in cast("list[Any]", dims) if isinstance(one, int) and one >= 0]
    whole = len(sizes) == len(cast("list[Any]", dims))
    return kind, math.ceil(math.prod(sizes) * bits / 8) if whole else None


def _weights(layer: Mapping[str, Any]) -> Iterator[Tensor]:
    """`"Weights": {"Type": "Half", "Count": 9408}`, as 8.6 to 10 write it."""
    for field in ("Weights", "Bias"):
        said = layer.get(field)
        if isinstance(said, dict):
            found = cast("dict[str, Any]", said)
            (kind, bits), count = type_of(str(found.get("Type", ""))), found.get("Count")
            if isinstance(count, int) and count > 0 and bits:
                yield kind, math.ceil(count * bits / 8)


def type_of(text: str) -> tuple[str, int]:
    """The first type that a text names, and its bits: `Row major linear FP16 format` is fp16."""
    words = (word.lower() for word in WORD.findall(text))
    return next((BITS[word] for word in words if word in BITS), ("", 0))


def _precision(
    inputs: Iterable[Tensor], outputs: Iterable[Tensor], weights: Iterable[Tensor]
) -> str:
    of_weights = next((kind for kind, _ in weights if kind), "")
    if of_weights:
        return of_weights
    taken = next((kind for kind, _ in inputs if kind), "")
    given = next((kind for kind, _ in outputs if kind), "")
    return f"{taken} → {given}" if taken and given and taken != given else given or taken


def _tactic(layer: Mapping[str, Any]) -> str:
    name = str(layer.get("TacticName") or "")
    value = str(layer.get("TacticValue") or "")
    # A number that is all zeros, or beyond the signed range, only says: there is no choice.
    return name or (value if re.search(r"[1-9a-eA-E]", value.removeprefix("0x")) else "")


def _sum(tensors: Iterable[Tensor]) -> int | None:
    sizes = [size for _, size in tensors]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _nodes_of_name(name: str) -> tuple[str, ...]:
    """ONNX nodes out of a layer's name: `Conv_0 + PWN(Relu_1)` is Conv_0 and Relu_1.

    A layer that only moves data has none of its own.
    """
    if REFORMAT.match(name):
        return ()
    found: list[str] = []
    waiting = [name]
    while waiting:
        part = waiting.pop(0).strip()
        wrapped = WRAPPED.match(part) or FOREIGN.match(part)
        pieces = _split(part) if wrapped is None else _split(wrapped[1], inside=True)
        if wrapped is not None or len(pieces) > 1:
            waiting = [*pieces, *waiting]
        elif part and not UNNAMED.match(part):
            found.append(part)
    return tuple(dict.fromkeys(found))


def _split(text: str, *, inside: bool = False) -> list[str]:
    """At ` + ` and ` || `, and inside a wrapper at `, ` and `...`; never within parentheses."""
    pieces: list[str] = []
    depth = start = index = 0
    separators = (" + ", " || ", ", ", "...") if inside else (" + ", " || ")
    while index < len(text):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        found = next((one for one in separators if text.startswith(one, index)), None)
        if found is not None and depth <= 0:
            pieces.append(text[start:index])
            index += len(found)
            start = index
        else:
            index += 1
    return [*pieces, text[start:]]
