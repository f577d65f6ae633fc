"""`enginefarm run` and `doctor`: an engine on this machine's GPU, once; and whether it can run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from enginefarm.cli import completion
from enginefarm.cli.options import NamedPath, gpu_option, precision_option
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import HostError, NoEngineFits, ToolchainError, UsageError

if TYPE_CHECKING:
    from enginefarm.documents.manifest import Manifest
    from enginefarm.run.single_run import RunResult

PAGE = "docs/running.md"


class LocalPlan(NamedTuple):
    """A plan on this disk, its manifest, and what could not be checked."""

    plan: Path
    manifest: Manifest
    caveats: tuple[str, ...]


@click.command("run")
@click.argument("engine", metavar="NAME[@CHANNEL]|PLAN", shell_complete=completion.engines)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="FILE.npz|[NAME=]FILE.npy",
    help="Arrays for the engine's inputs (repeat). Default: seeded random ones.",
)
@click.option(
    "--profile", metavar="NAME", help="Without --input: use this profile's optimal shapes."
)
@click.option("--seed", type=click.IntRange(0), help="Without --input: the seed; 0 by default.")
@click.option(
    "--output",
    type=NamedPath(path_type=Path, dir_okay=False),
    metavar="FILE.npz",
    help="Write the outputs here.",
)
@precision_option("With NAME: this precision's engine. Default: the best that fits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run_(
    engine: str,
    inputs: tuple[str, ...],
    profile: str | None,
    seed: int | None,
    output: Path | None,
    precision: Any,
    as_json: bool,
) -> None:
    """Run an engine once on this machine's GPU, and show what comes out.

    NAME is a recipe: the engine that fits is pulled. PLAN is the file of an engine that was pulled
    before. Outputs are shown with their shape, range and sha256.
    """
    if inputs and (profile is not None or seed is not None):
        raise UsageError(
            "run: --profile and --seed are for random inputs", fix="leave out these or --input"
        )
    _require_gpu_and_numpy()
    from enginefarm.run import inputs as arrays
    from enginefarm.run.single_run import run_once
    from enginefarm.store import site

    found = _locate(engine, precision)
    manifest = found.manifest
    feeds = (
        arrays.read_feeds(inputs, manifest)
        if inputs
        else arrays.random_feeds(manifest, profile=profile, seed=seed or 0)
    )
    plugins = site.plugin_libraries(site.here(), manifest.spec) if manifest.spec.plugins else ()
    ran = run_once(found.plan, manifest, feeds, plugins=plugins)
    if output is not None:
        arrays.write_npz(output, ran.outputs)
    origin = "given" if inputs else f"random (seed {seed or 0})"
    _show(found, ran, feeds, origin, as_json=as_json)
    if output is not None and not as_json:
        click.echo(f"outputs written to {output}")


def _require_gpu_and_numpy() -> None:
    """Raises: HostError, ToolchainError. Before anything is downloaded."""
    from enginefarm.host.detect import first_gpu

    if first_gpu() is None:
        raise HostError(
            "run: this machine has no NVIDIA GPU, and engines run only on one",
            why="NVML is not installed, or finds no GPU",
            fix=f"run it on a host with the GPU; {PAGE} says what to install there",
        )
    if find_spec("numpy") is None:
        raise ToolchainError(
            "enginefarm run needs the 'gpu' packages",
            why="numpy is not installed",
            fix=f"pip install 'enginefarm[gpu]'; {PAGE} says what each runtime needs",
        )


def _locate(engine: str, precision: Any) -> LocalPlan:
    """Raises: UsageError, NoEngineFits, and what a pull raises."""
    path = Path(engine)
    if path.is_file():
        if precision is not None:
            raise UsageError("run --precision: a plan already has a precision", fix="leave it out")
        return _from_file(path)
    if path.suffix == ".plan" or len(path.parts) > 1:
        raise UsageError(
            f"run: {engine} is not a file",
            fix="give a plan file, or the name of a recipe in the store",
        )
    from enginefarm.cli.pull import watched_if_any
    from enginefarm.pulling.pull import pull

    with watched_if_any(enabled=True):
        pulled = pull(engine, precision=precision)
    return LocalPlan(pulled.path, pulled.manifest, pulled.candidate.caveats)


def _from_file(path: Path) -> LocalPlan:
    from enginefarm.host.detect import detect
    from enginefarm.pulling.doctor import failures, manifest_for, plan_findings
    from enginefarm.store.cache import BlobCache

    manifest = manifest_for(path, BlobCache())
    if manifest is None:
        raise UsageError(
            f"run: the manifest of {path} was not found",
            why=f"{path}.json does not exist, and this host has not pulled these bytes",
            fix="`enginefarm pull NAME --dest FILE` writes both",
        )
    findings = plan_findings(path, manifest, detect())
    failed = failures(findings)
    if failed:
        raise NoEngineFits(
            f"run: {path} does not fit this host",
            why="\n       ".join(f"{one.subject}: {one.detail}" for one in failed),
            fix="`enginefarm pull NAME` takes the engine that fits",
        )
    unknown = tuple(one.detail for one in findings if one.verdict == "unknown")
    return LocalPlan(path, manifest, unknown)


def _show(found: LocalPlan, ran: RunResult, feeds: Any, origin: str, *, as_json: bool) -> None:
    manifest = found.manifest
    rows = [_row(name, array) for name, array in ran.outputs.items()]
    if as_json:
        print_json(
            {
                "engine": {"recipe": manifest.recipe, "spec_digest": manifest.spec_digest},
                "device": ran.device,
                "profile": ran.profile.name,
                "inputs": {name: list(array.shape) for name, array in feeds.items()},
                "random": origin != "given",
                "outputs": rows,
                "caveats": list(found.caveats),
            }
        )
        return
    shapes = ", ".join(f"{name} {_shape(array.shape)}" for name, array in feeds.items())
    print_table(
        f"{manifest.recipe} {manifest.spec.label} {manifest.spec_digest[:12]} on {ran.device}, "
        f"profile {ran.profile.name}\ninputs, {origin}: {shapes}",
        ("output", "type", "shape", "min", "mean", "max", "not finite", "sha256"),
        [
            (
                row["name"],
                row["dtype"],
                _shape(row["shape"]),
                *(f"{row[one]:.6g}" if row[one] is not None else "–" for one in RANGE),
                str(row["not_finite"]),
                row["sha256"][:12],
            )
            for row in rows
        ],
    )
    for caveat in found.caveats:
        click.echo(f"note: {caveat}", err=True)


RANGE = ("min", "mean", "max")


def _shape(shape: Any) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _row(name: str, array: Any) -> dict[str, Any]:
    """The range is of the finite elements. sha256: of the elements' bytes, in C order."""
    import hashlib

    import numpy as np

    finite = array[np.isfinite(array)].astype(np.float64)
    low, mean, high = (
        (float(finite.min()), float(finite.mean()), float(finite.max()))
        if finite.size
        else (None, None, None)
    )
    return {
        "name": name,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "min": low,
        "mean": mean,
        "max": high,
        "not_finite": int(array.size - finite.size),
        "sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(),
    }


STYLES = {"ok": "green", "unknown": "yellow", "fails": "red"}


@click.command()
@click.argument("plan", required=False, type=NamedPath(path_type=Path, dir_okay=False))
@gpu_option("The GPU; auto is this machine's.", default="auto", show_default=True)
@click.option(
    "--manifest",
    "manifest_path",
    type=NamedPath(path_type=Path, dir_okay=False),
    help="Default: PLAN.json next to it, or the one that this host pulled.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(plan: Path | None, gpu: str, manifest_path: Path | None, as_json: bool) -> None:
    """Describe what this host has, and whether PLAN can run on it.

    It reads the plan's manifest and its first bytes; nothing is loaded onto a GPU. The exit
    code is 50 if the plan cannot run.
    """
    from enginefarm.pulling.doctor import examine, failures

    host, findings = examine(plan, gpu=gpu, manifest=manifest_path)
    if as_json:
        print_json([one._asdict() for one in findings])
    else:
        print_table(
            f"{plan} on {host}" if plan else "This host",
            ("subject", "detail", "verdict"),
            [(one.subject, one.detail, one.verdict) for one in findings],
            [STYLES[one.verdict] for one in findings],
        )
    failed = failures(findings)
    if failed:
        raise NoEngineFits(
            f"doctor: {plan or 'this host'} fails {len(failed)} "
            f"check{'s' if len(failed) > 1 else ''}",
            why="\n       ".join(f"{one.subject}: {one.detail}" for one in failed),
        )
