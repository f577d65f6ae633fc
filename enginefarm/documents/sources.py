"""Where a recipe's model comes from: a class for each kind of source.

CODE: what loads it, a `graph.sources.Source`. LOADS: what that makes of it.
To add one, add a class here, its name to `Source`, and the file that CODE names.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, JsonValue

from enginefarm.schema import FilePath, Frozen, ImportPath

ModelForm = Literal["module", "program", "file"]
"""A PyTorch module, an exported program, or an ONNX file."""


class TorchSource(Frozen):
    """A callable that returns an `nn.Module` in eval mode."""

    CODE: ClassVar = "enginefarm.graph.sources.torch_callable:TorchCallable"
    LOADS: ClassVar[ModelForm] = "module"

    kind: Literal["torch"] = "torch"
    callable: ImportPath = Field(
        description="`file.py:name`, relative to the recipe, or `package.module:name`."
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="Keyword arguments of the callable."
    )
    checkpoint: FilePath | None = Field(
        default=None,
        description="safetensors, or a .pt/.pth/.bin state dict read with weights_only; the "
        "`….index.json` of such files, or a folder that Hugging Face wrote.",
    )
    checkpoint_key: str | None = Field(
        default=None,
        description="Where the weights are in a checkpoint that holds several, such as "
        "`params_ema`: a key of the file, or what the names begin with.",
    )
    depends: tuple[FilePath, ...] = Field(
        default=(),
        description="More files and folders whose change causes a rebuild, relative to the recipe.",
    )


class LightningSource(Frozen):
    """A Lightning checkpoint and the module class that it belongs to."""

    CODE: ClassVar = "enginefarm.graph.sources.lightning:Lightning"
    LOADS: ClassVar[ModelForm] = "module"

    kind: Literal["lightning"]
    module: ImportPath = Field(description="The module's class: `file.py:Name`.")
    checkpoint: FilePath = Field(description="The .ckpt file, relative to the recipe.")


class ExportedProgramSource(Frozen):
    """A `torch.export` program, saved as .pt2."""

    CODE: ClassVar = "enginefarm.graph.sources.exported_program:ExportedProgramFile"
    LOADS: ClassVar[ModelForm] = "program"

    kind: Literal["exported_program"]
    path: FilePath = Field(description="The .pt2 file, relative to the recipe.")


class OnnxSource(Frozen):
    """An ONNX file: a path relative to the recipe, or `s3://bucket/key`."""

    CODE: ClassVar = "enginefarm.graph.sources.onnx_file:OnnxFile"
    LOADS: ClassVar[ModelForm] = "file"

    kind: Literal["onnx"]
    path: FilePath = Field(description="The .onnx file, relative to the recipe, or `s3://…`.")


Source = Annotated[
    TorchSource | LightningSource | ExportedProgramSource | OnnxSource,
    Field(discriminator="kind"),
]

SOURCES: dict[str, str] = {
    get_args(one.model_fields["kind"].annotation)[0]: one.CODE
    for one in get_args(get_args(Source)[0])
}
"""Kind -> CODE."""
