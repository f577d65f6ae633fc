"""`enginefarm doctor`: this host, and whether a plan can run on it."""

from __future__ import annotations

from pathlib import Path

import click

from enginefarm.cli.options import NamedPath, gpu_option
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import NoEngineFits

STYLES = {"ok": "green", "unknown": "yellow", "fails": "red"}


@click.command()
@click.argument("plan", required=False, type=NamedPath(path_type=Path, dir_okay=False))
@gpu_option("The GPU; auto is this machine's.", default="auto", show_default=True)
@click.option(
    "--manifest",
    "manifest_path",
    type=NamedPath(path_type=Path, dir_okay=False),
    help="Default: PLAN.json beside it, else what this host pulled.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(plan: Path | None, gpu: str, manifest_path: Path | None, as_json: bool) -> None:
    """Describe what this host has, and whether PLAN can run on it.

    It reads the plan's manifest and its first bytes; nothing is loaded onto a GPU. The exit
    code is 50 when it cannot run.
    """
    from enginefarm.pulling.doctor import examine, failures

    host, findings = examine(plan, gpu=gpu, manifest=manifest_path)
    if as_json:
        print_json([one.model_dump(mode="json") for one in findings])
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
