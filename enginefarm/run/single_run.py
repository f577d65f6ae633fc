"""An engine, run once on this machine's GPU in a fresh process, on inputs of the caller's.

A crash of the engine is an error here, and not a crash of the caller.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.child.call import Child
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import ShapeProfile
from enginefarm.errors import EngineRunError, UsageError
from enginefarm.run.buffers import as_dtype
from enginefarm.run.running import RunRequest
from enginefarm.run.verify import profile_for
from enginefarm.schema import Frozen

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


NPY = ".npy"


class OnceRequest(RunRequest):
    """One run, as it is handed to the fresh process. inputs, outputs: folders of `N.npy`, in the
    order of `names` and of the answer's `names`: a tensor's name need not be a file's."""

    names: tuple[str, ...]
    inputs: Path
    outputs: Path


class OnceAnswer(Frozen):
    device: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class RunResult:
    """device: the GPU's name. profile: the one that was used. outputs: numpy, by name; what is
    bfloat16 in the engine comes as float32, which holds it exactly."""

    device: str
    profile: ShapeProfile
    outputs: Arrays


def run_once(
    plan: Path, manifest: Manifest, feeds: Mapping[str, Any], *, plugins: Sequence[Path] = ()
) -> RunResult:
    """Runs the plan on `feeds`, numpy arrays by input name.

    Raises: UsageError for inputs that no profile takes; HostError, DriverTooOld, EngineRunError.
    """
    import numpy as np

    index = _profile(manifest, feeds)
    feeds = _as_declared(feeds, manifest)
    toolchain = manifest.spec.toolchain
    child = Child(
        what=f"run: {manifest.recipe} {manifest.spec.label}",
        error=EngineRunError,
    )
    with tempfile.TemporaryDirectory(prefix="enginefarm-") as name:
        inputs, outputs = Path(name) / "inputs", Path(name) / "outputs"
        for folder in (inputs, outputs):
            folder.mkdir()
        for number, array in enumerate(feeds.values()):
            np.save(inputs / f"{number}{NPY}", array, allow_pickle=False)
        request = OnceRequest(
            plan=plan.resolve(),
            toolchain=toolchain.name,
            cuda_major=int(toolchain.cuda.split(".")[0]),
            plugins=tuple(plugins),
            profile=index,
            names=tuple(feeds),
            inputs=inputs,
            outputs=outputs,
        )
        answer = child.ask(f"{__name__}:run_here", request, OnceAnswer)
        made = {
            output: np.load(outputs / f"{number}{NPY}", allow_pickle=False)
            for number, output in enumerate(answer.names)
        }
    return RunResult(answer.device, manifest.spec.profiles[index], made)


def _as_declared(feeds: Mapping[str, Any], manifest: Manifest) -> Arrays:
    """In the engine's own types; bfloat16, which no file of numpy's holds, waits for the child.

    Raises: EngineRunError for a conversion that loses more than a float's last digits.
    """
    declared = {tensor.name: tensor for tensor in manifest.tensors}
    return {
        name: array if declared[name].dtype == "bfloat16" else as_dtype(array, declared[name])
        for name, array in feeds.items()
    }


def _profile(manifest: Manifest, feeds: Mapping[str, Any]) -> int:
    """The first profile that takes these inputs. Raises: UsageError, which says what is wrong."""
    _require_inputs(manifest, feeds)
    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    index = profile_for(shapes, manifest.spec.profiles)
    if index is not None:
        return index
    given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    takes = "\n       ".join(
        f"profile {profile.name}: "
        + ", ".join(f"{name} {one.min} to {one.max}" for name, one in profile.shapes.items())
        for profile in manifest.spec.profiles
    )
    raise UsageError(
        f"run: no profile of the engine takes {given}",
        why=takes,
        fix="give inputs of other sizes, or build the engine with a wider profile",
    )


def _require_inputs(manifest: Manifest, feeds: Mapping[str, Any]) -> None:
    wanted = [tensor.name for tensor in manifest.tensors if tensor.role == "input"]
    missing = [name for name in wanted if name not in feeds]
    unknown = [name for name in feeds if name not in wanted]
    if missing or unknown:
        what = [f"{', '.join(missing)} is not given"] if missing else []
        what += [f"{', '.join(unknown)} is not an input of the engine"] if unknown else []
        raise UsageError(
            f"run: {'; '.join(what)}",
            why=f"the engine's inputs are {', '.join(wanted)}",
            fix="give each input once: --input NAME=FILE.npy, or an .npz with these names",
        )


def run_here(request_json: str) -> str:
    """The child's part: an OnceRequest in, an OnceAnswer out, both as JSON.

    Raises: HostError, EngineRunError.
    """
    import numpy as np

    from enginefarm.run.artifacts import open_artifact

    asked = OnceRequest.model_validate_json(request_json)
    feeds = {
        name: np.load(asked.inputs / f"{number}{NPY}", allow_pickle=False)
        for number, name in enumerate(asked.names)
    }
    with (
        open_artifact(asked) as artifact,
        closing(artifact.running(asked.plan.name, profile=asked.profile)) as running,
    ):
        running.bind(feeds)
        running.iterate()
        outputs = running.outputs()
        device = artifact.device_name
    for number, array in enumerate(outputs.values()):
        plain = array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16
        np.save(asked.outputs / f"{number}{NPY}", plain, allow_pickle=False)
    return OnceAnswer(device=device, names=tuple(outputs)).model_dump_json()
