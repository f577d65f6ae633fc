"""`enginefarm worker`: one Prefect process worker, after it has shown what it is."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from enginefarm.farm.worker.card import Role

from enginefarm.cli import completion
from enginefarm.cli.options import one_label
from enginefarm.errors import FarmError, UsageError


@click.command()
@click.option(
    "--gpu",
    "label",
    metavar="LABEL",
    callback=one_label,
    shell_complete=completion.gpus,
    help="Build and benchmark for this GPU.",
)
@click.option(
    "--cross", is_flag=True, help="With --gpu: this machine has no such GPU; cross-build for it."
)
@click.option("--cpu", is_flag=True, help="Cross-build for labels that have no worker.")
@click.option("--control", is_flag=True, help="Plan, export, calibrate, and start the builds.")
@click.option("--name", help="The worker's name; host, role and card by default.")
@click.option(
    "--limit",
    type=click.IntRange(1, 64),
    help="How many runs at once: 1 by default, 8 with --control.",
)
def worker(
    label: str | None, cross: bool, cpu: bool, control: bool, name: str | None, limit: int | None
) -> None:
    """Run a worker that takes runs from a work pool until it is stopped.

    Choose one of --gpu, --cpu and --control. A worker with --gpu checks with NVML that its GPU
    has that label, and takes one job at a time.
    """
    role = _role(label, cross, cpu, control)

    from enginefarm.farm.server.environment import prepare_worker

    prepare_worker()
    if role == "control":
        # Runs start in a folder of their own: relative recipe paths mean this one.
        os.environ.setdefault("ENGINEFARM_RECIPE_ROOTS", str(Path.cwd()))

    from enginefarm.farm.worker import serve

    serve.serve(
        role=role,
        label=label,
        name=_name(name, role, label),
        limit=limit or (8 if role == "control" else 1),
    )


def _role(label: str | None, cross: bool, cpu: bool, control: bool) -> Role:
    if (label is not None) + cpu + control != 1:
        raise UsageError(
            "worker: give exactly one of --gpu LABEL, --cpu and --control",
            fix="enginefarm worker --gpu t4",
        )
    if cross and label is None:
        raise UsageError("worker: --cross goes with --gpu LABEL", fix="--cpu builds for any label")
    if label is not None:
        return "cross" if cross else "gpu"
    return "cpu" if cpu else "control"


def default_name(role: str, label: str | None) -> str:
    """The host's and the role's; the card's too, for a machine with several GPUs."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "") if role == "gpu" else ""
    card = f"-{shown.split(',')[0]}" if shown else ""
    return f"{platform.node()}-{label or role}{card}"


def _name(name: str | None, role: str, label: str | None) -> str:
    made = name or default_name(role, label)
    made = re.sub(r"[^a-z0-9._-]+", "-", made.lower()).strip("-._")[:64].rstrip("-._")
    if not made:
        raise FarmError(f"worker: {name!r} is not a name", fix="use letters, digits, - and _")
    return made
