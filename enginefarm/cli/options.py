"""Options that several commands share: labels in any case, with commas, and completed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from enginefarm.cli import completion
from enginefarm.errors import UsageError, did_you_mean
from enginefarm.names import PRECISION_NAMES, RUNTIMES


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator; `--help` lists them in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class FiniteRange(click.FloatRange):
    """A FloatRange that refuses `nan`, which is in every range, and `inf`."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class NamedPath(click.Path):
    """A path that is not empty (`--dest "$UNSET"` would mean the working folder), nor a pipe or a
    device, which might be waited for without end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty.", param, ctx)
        path = Path(value)
        if path.exists() and not (path.is_file() or path.is_dir()):
            self.fail(f"{value} is a pipe or a device: name a file.", param, ctx)
        return super().convert(value, param, ctx)


recipe_argument = click.argument(
    "recipe", type=NamedPath(path_type=Path), shell_complete=completion.recipe_files
)
"""The file of a recipe, or its folder."""

MOST_WHY = 2000
"""Characters of a reason in a channel's log."""


def reason(context: click.Context, parameter: click.Parameter, given: str) -> str:
    """A callback. Raises: UsageError for a reason that a channel's log does not take."""
    if len(given) > MOST_WHY:
        raise UsageError(
            f"{parameter.opts[0]}: the reason has {len(given):,} characters",
            fix=f"write at most {MOST_WHY:,}, such as a link to the whole of it",
        )
    return given


why_option = click.option(
    "--why", default="", callback=reason, help="The reason, for the channel's log."
)


def several(context: click.Context, parameter: click.Parameter, given: Iterable[str]) -> Any:
    """`-x t4,L4 -x A100` as ("t4", "l4", "a100")."""
    parts = (part.strip().lower() for text in given for part in text.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def labels(context: click.Context, parameter: click.Parameter, given: Iterable[str]) -> Any:
    """`several`, of the GPU table. Raises: GpuError for an unknown one, as `one_label` does."""
    from enginefarm.documents import gpus

    found: tuple[str, ...] = several(context, parameter, given)
    for label in found:
        gpus.gpu(label)
    return found


def one_of(names: Iterable[str]) -> Callable[..., Any]:
    """A callback: `several`, each of them among `names`. Raises: UsageError."""
    known = tuple(names)

    def check(context: click.Context, parameter: click.Parameter, given: Iterable[str]) -> Any:
        found: tuple[str, ...] = several(context, parameter, given)
        for name in found:
            if name not in known:
                meant = did_you_mean(name, known)
                raise UsageError(
                    f"{parameter.opts[0]}: {name!r} is not known",
                    fix=f"{meant} Use one of: {', '.join(known)}".strip(),
                )
        return found

    return check


def one_label(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    """A label of the GPU table, in any case; `auto` where it is the default.

    Raises: GpuError for an unknown one, with the label that was probably meant.
    """
    if given is None:
        return None
    label = given.strip().lower()
    if label != parameter.default:
        from enginefarm.documents import gpus

        gpus.gpu(label)
    return label


def gpus_option(help_line: str, name: str = "gpus") -> Callable[[Any], Any]:
    return click.option(
        "--gpu",
        name,
        multiple=True,
        metavar="LABEL,…",
        callback=labels,
        shell_complete=completion.gpus,
        help=help_line,
    )


def precisions_option(
    help_line: str, name: str = "precisions", check: Callable[..., Any] = several
) -> Callable[[Any], Any]:
    return click.option(
        "--precision",
        name,
        multiple=True,
        metavar="NAME,…",
        callback=check,
        shell_complete=completion.precisions,
        help=help_line,
    )


def precisions_filter(help_line: str) -> Callable[[Any], Any]:
    """Unlike the recipe's precisions, which `plan.narrowed` checks, the names are checked here."""
    return precisions_option(help_line, "precision", one_of(PRECISION_NAMES))


def runtimes_filter(help_line: str) -> Callable[[Any], Any]:
    return click.option(
        "--runtime", multiple=True, metavar="NAME,…", callback=one_of(RUNTIMES), help=help_line
    )


promotion_options = together(
    click.option(
        "--to",
        "channel",
        default="production",
        show_default=True,
        help="The channel to move.",
        shell_complete=completion.channels,
    ),
    click.option(
        "--from",
        "source",
        metavar="CHANNEL",
        shell_complete=completion.channels,
        help="Take the engines from this channel. Default: the newest engines.",
    ),
    why_option,
    click.option(
        "--allow-pending",
        is_flag=True,
        help="Also promote engines that have not run on their GPU yet.",
    ),
    click.option("--allow-missing", is_flag=True, help="Promote even if the channel loses a GPU."),
)
"""The options of commands that move a channel."""


def gpu_option(help_line: str, **more: Any) -> Callable[[Any], Any]:
    return click.option(
        "--gpu",
        metavar="LABEL",
        callback=one_label,
        shell_complete=completion.gpus,
        help=help_line,
        **more,
    )


def nights_option(help_line: str) -> Callable[[Any], Any]:
    nights = click.IntRange(1, 3650)
    return click.option("--nights", default=30, show_default=True, type=nights, help=help_line)


def precision_option(help_line: str) -> Callable[[Any], Any]:
    names = click.Choice(PRECISION_NAMES, case_sensitive=False)
    return click.option("--precision", type=names, help=help_line)
