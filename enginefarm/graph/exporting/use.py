"""What decides an exported and a slimmed graph, as their keys have it, and what a recipe asks of
their outputs. Loads no library."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import ToolUse
from enginefarm.errors import EnginefarmError, ToolchainError
from enginefarm.graph.model.operators import OPSET
from enginefarm.graph.verification import closeness

MAX_RELATIVE = closeness.ROUNDING
"""Relative to an output's largest value. 24 graphs had 0; a folded BatchNormalization 1e-6."""


def export_tool(recipe: Recipe) -> ToolUse:
    """The exporter, its version and arguments. Imports neither torch nor onnx."""
    if recipe.source.LOADS == "file":
        return ToolUse(
            name="onnx",
            version=version("onnx"),
            arguments={
                "opset": OPSET,
                "outputs": list(recipe.outputs),
                "normal_form": 1,
                "reading": 10,
            },
        )
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        raise ToolchainError(
            f"source: {recipe.source.kind}: this model needs PyTorch, and torch is not installed",
            fix="pip install 'enginefarm[farm,torch]', or provide the model as ONNX",
        ) from None
    return ToolUse(
        name="torch.onnx",
        version=torch_version,
        arguments={
            "opset": recipe.export.opset,
            "onnxscript": version("onnxscript"),
            "outputs": list(recipe.outputs),
            "normal_form": 8,
        },
    )


def slim_tool() -> ToolUse:
    """OnnxSlim's name, version and arguments. OnnxSlim is not imported."""
    return ToolUse(
        name="onnxslim",
        version=version("onnxslim"),
        arguments={"normal_form": 1, "fallback": 1, "max_relative": MAX_RELATIVE},
    )


def check_class_scores(
    recipe: Recipe, outputs: Sequence[str], error: type[EnginefarmError]
) -> None:
    """Checked on every run, because another recipe may have put the graph into the store.

    Raises: `error` when the recipe names an output that does not exist.
    """
    missing = set(recipe.verification.class_scores) - set(outputs)
    if missing:
        raise error(
            f"verification.class_scores: the model has no output {', '.join(sorted(missing))}",
            why=f"outputs are {', '.join(outputs)}",
            fix="name the outputs with `outputs`",
        )
