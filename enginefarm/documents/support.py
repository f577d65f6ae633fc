"""What NVIDIA lists for a GPU, a toolchain and a precision, and what was proven: support.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from enginefarm.documents.gpus import Gpu
from enginefarm.names import PrecisionName

Word = Literal["proven here", "listed", "not listed", "not known"]


class Proof(NamedTuple):
    """Engines that ran on a real GPU, verified there by this repository.

    release: of the toolchain, as 8.6.1. page: the page in docs/measurements that says so.
    """

    gpu: str
    release: str
    precisions: list[PrecisionName]
    page: str


class Support(NamedTuple):
    """One toolchain's row. listed: by compute capability; None where no list could be read."""

    source: str
    listed: dict[str, list[PrecisionName]] | None = None
    proven: tuple[Proof, ...] = ()


@cache
def table() -> dict[str, Support]:
    """Every row, by the toolchain's name."""
    return rows(Path(__file__).with_name("support.toml").read_text("utf-8"))


def rows(text: str) -> dict[str, Support]:
    """The rows of a text as support.toml has it. Not checked: the table is ours, and tested."""
    return {
        name: Support(
            row["source"],
            row.get("listed"),
            tuple(Proof(**proof) for proof in row.get("proven", ())),
        )
        for name, row in tomllib.loads(text).items()
    }


def support(gpu: Gpu, toolchain: str, precision: str) -> Word:
    """What is known about this combination. `proven here` comes first: the engine ran.

    toolchain: the name in a spec. A toolchain without a row is "not known".
    """
    row = table().get(toolchain)
    if row is None:
        return "not known"
    if any(one.gpu == gpu.label and precision in one.precisions for one in row.proven):
        return "proven here"
    if row.listed is None:
        return "not known"
    return "listed" if precision in row.listed.get(gpu.compute_capability, ()) else "not listed"


def caution(gpu: Gpu, toolchain: str, precision: str) -> str:
    """The sentence shown with an engine that NVIDIA does not list; else empty."""
    if support(gpu, toolchain, precision) != "not listed":
        return ""
    return (
        f"NVIDIA does not list {precision} on {gpu.label} (compute capability "
        f"{gpu.compute_capability}) for {toolchain}: the engine may build, "
        "but NVIDIA does not promise that it works"
    )


def cells(gpu: Gpu) -> dict[str, dict[str, Word]]:
    """Every toolchain and every precision that the GPU has."""
    return {
        name: {precision: support(gpu, name, precision) for precision in gpu.precisions}
        for name in table()
    }


def evidence(page: Callable[[str], str] = str) -> Iterator[str]:
    """One line for the list of each toolchain, and one for each GPU that it was proven on here.

    page: how a page of docs/ is written: its path in a terminal, a link in Markdown.
    """
    for name, row in table().items():
        yield f"{name}: {row.source}"
        for one in row.proven:
            yield (
                f"{name}: proven here on {one.gpu} with {one.release}: "
                f"{', '.join(one.precisions)} ({page(one.page)})"
            )


def sentence(gpu: Gpu, toolchain: str) -> str:
    """One cell of a table of GPUs: `lists fp32 fp16; int8 not listed`."""
    words = {one: support(gpu, toolchain, one) for one in gpu.precisions}
    listed = [one for one, word in words.items() if word in ("listed", "proven here")]
    others = [one for one, word in words.items() if word == "not listed"]
    if not listed:
        return "not listed"
    return f"lists {' '.join(listed)}" + (f"; {' '.join(others)} not listed" if others else "")
