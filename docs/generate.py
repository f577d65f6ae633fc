"""Writes docs/cli.md, docs/errors.md and docs/gpus.md from the code they describe.

python docs/generate.py            writes them
python docs/generate.py --check    fails, naming the page, when one is not as it would be
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import click

from enginefarm import errors
from enginefarm.cli import COMMANDS, cli
from enginefarm.documents import gpus
from enginefarm.documents.thresholds import DEFAULT_BUDGETS

DOCS = Path(__file__).parent
WRITTEN = "<!-- written by docs/generate.py; edit the code instead -->\n"
WIDTH = 88


def cli_page() -> str:
    """Every help page, as `enginefarm COMMAND --help` prints it."""
    parts = ["# The command line", WRITTEN, _help(cli, "enginefarm")]
    root = click.Context(cli, info_name="enginefarm", terminal_width=WIDTH)
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None, name
        parts += _pages(command, f"enginefarm {name}")
    return "\n".join(parts)


def _pages(command: click.Command, path: str) -> list[str]:
    parts = [f"## {path}\n", _help(command, path)]
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path, terminal_width=WIDTH)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, name
            parts += _pages(inner, f"{path} {name}")
    return parts


def _help(command: click.Command, path: str) -> str:
    context = click.Context(
        command,
        info_name=path,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    return f"```text\n{command.get_help(context)}\n```\n"


def errors_page() -> str:
    """Every error with its exit code, whether it is worth a retry, and what it means."""
    meanings = dict(re.findall(r"[├└]── (\w+)\s+\d+  (.+)", errors.__doc__ or ""))
    rows = [
        "# Errors and exit codes",
        WRITTEN,
        "Every deliberate error says what is wrong, why, and what to do next. Its number is the",
        "exit code of the command line. Transient errors are retried with back-off; others never",
        "are. 0 is success, 130 an interruption.\n",
        "| code | error | is a | transient | when |",
        "|---|---|---|---|---|",
    ]
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.EnginefarmError) and kind is not errors.EnginefarmError
    ]
    for kind in sorted(kinds, key=lambda kind: kind.exit_code):
        parent = kind.__base__.__name__ if kind.__base__ else ""
        retried = "yes" if kind.transient else ""
        when = meanings.get(kind.__name__, "")
        rows.append(f"| {kind.exit_code} | {kind.__name__} | {parent} | {retried} | {when} |")
    return "\n".join(rows) + "\n"


def gpus_page() -> str:
    """Every GPU of the table and every precision, with its default budget."""
    rows = [
        "# GPUs and precisions",
        WRITTEN,
        "A row is a table of `enginefarm/documents/gpus.toml`; to add a GPU, add one there.\n",
        "| label | compute capability | memory, GiB | bandwidth, GB/s | precisions | work pool |",
        "|---|---|---|---|---|---|",
    ]
    for gpu in gpus.table().values():
        rows.append(
            f"| {gpu.label} | {gpu.compute_capability} | {gpu.memory_gib:g} | "
            f"{gpu.bandwidth_gb_s:g} | {' '.join(gpu.precisions)} | {gpu.work_pool} |"
        )
    rows += [
        "\n## Default accuracy budgets\n",
        "Against FP32 PyTorch; a recipe's `accuracy` overrides them. Over budget: not published.\n",
        "| precision | cosine at least | relative L2 at most |",
        "|---|---|---|",
    ]
    for name, budget in DEFAULT_BUDGETS.items():
        rows.append(f"| {name} | {budget.min_cosine:g} | {budget.max_relative_l2:g} |")
    return "\n".join(rows) + "\n"


PAGES = {"cli.md": cli_page, "errors.md": errors_page, "gpus.md": gpus_page}


def main(arguments: list[str]) -> int:
    stale = []
    for name, page in PAGES.items():
        text, file = page(), DOCS / name
        if not file.exists() or file.read_text("utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                file.write_text(text, "utf-8")
    if stale and "--check" in arguments:
        print(f"stale: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
