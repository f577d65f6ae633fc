"""What `import enginefarm` has, next to `pull` and `benchmarks`: `list`, `doctor` and `build`.

The modules that the work needs are imported by the functions, so that `help(enginefarm)` works
on a host that has the pull client alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.child.lifeline import die_with_parent_of
from enginefarm.cli import farm_missing
from enginefarm.documents import written_errors
from enginefarm.errors import EnginefarmError

if TYPE_CHECKING:
    from enginefarm.documents.manifest import Manifest
    from enginefarm.names import PrecisionName
    from enginefarm.planning.outcome import Outcome
    from enginefarm.pulling.doctor import Finding


def list(
    name: str | None = None,
    *,
    gpu: str | None = None,
    precision: PrecisionName | None = None,
    store: str | None = None,
) -> tuple[Manifest, ...]:
    """The manifests of the engines in the store: all of them, or those of the recipe `name`.

    gpu: a label of `enginefarm gpus`. store: `s3://bucket/prefix`; None: the default store.
    In the order of recipe, GPU and precision; of each the newest comes first.

        for manifest in enginefarm.list("minilm", gpu="t4"):
            print(manifest.spec.label, manifest.engine.size_bytes, manifest.created_at)

    Raises: GpuError for an unknown GPU, and what the store raises.
    """
    from enginefarm.documents import gpus
    from enginefarm.pulling.catalog import listed
    from enginefarm.store import open_store

    if gpu is not None:
        gpu = gpus.gpu(gpu.lower()).label
    return listed(open_store(store), name, gpu, precision)


def doctor(
    plan: Path | str | None = None, *, gpu: str = "auto", manifest: Path | str | None = None
) -> tuple[Finding, ...]:
    """What this host has; with `plan`, whether that plan can run on it. Nothing is loaded.

    plan: a file. manifest: its manifest's; None: `PLAN.json` next to it, else what this host
    pulled. gpu: a label, or `auto` for this machine's. Each finding has a subject, a verdict
    ("ok", "unknown" or "fails") and a detail.

        assert not [one for one in enginefarm.doctor("model.plan") if one.verdict == "fails"]

    Raises: UsageError for a file that cannot be read, CorruptBlob for an invalid manifest,
    GpuError for an unknown GPU.
    """
    from enginefarm.pulling.doctor import examine

    paths = [None if one is None else Path(one) for one in (plan, manifest)]
    return examine(paths[0], gpu=gpu, manifest=paths[1])[1]


def build(
    recipe: Path | str, *, gpus: Sequence[str] = (), precisions: Sequence[str] = ()
) -> tuple[Outcome, ...]:
    """Builds the engines of a recipe, or of a model, that are not in the store yet.

    recipe: a recipe's file, or a model: `.onnx`, `.pt2` or `FILE.py:CALLABLE`, which need
    `gpus`. gpus, precisions: only these; empty: all that the recipe names. It runs
    `enginefarm build` in a separate process, and returns a row for every engine: one that
    is missing has `fine` False, and `reason` says why.

        for row in enginefarm.build("model.onnx", gpus=["t4", "l4"], precisions=["fp16"]):
            print(row.label, row.status, row.reason)

    Raises: ToolchainError without the farm's packages (pip install 'enginefarm[farm]'); and,
    where nothing could be tried, the error that the command would print.
    """
    if find_spec("prefect") is None:
        raise farm_missing("enginefarm.build")
    from enginefarm.planning.outcome import Outcome

    command = [sys.executable, "-P", "-c", "from enginefarm.cli import main; main()", "build"]
    command += [str(recipe), "--json"]
    command += [word for label in gpus for word in ("--gpu", label)]
    command += [word for name in precisions for word in ("--precision", name)]
    done = subprocess.run(
        command, capture_output=True, check=False, preexec_fn=die_with_parent_of()
    )
    try:
        rows = json.loads(done.stdout)
    except ValueError:
        raise _error(done.returncode, done.stderr.decode("utf-8", "replace")) from None
    return tuple(Outcome.model_validate(row) for row in rows)


def _error(code: int, said: str) -> EnginefarmError:
    """What the command printed, as the error that it was."""
    found = re.search(r"^error: (.*)", said, re.MULTILINE | re.DOTALL)
    if found is None:
        return EnginefarmError(
            f"build: the process ended with status {code}", why=said.strip()[-600:]
        )
    return written_errors.of_text(
        written_errors.kind_of_code(code).__name__, found[1].rstrip(), EnginefarmError
    )
