"""What a TensorRT-RTX plan's first bytes say, read without a GPU and without the library.

Reverse-engineered on 1.7.1 (see docs/decisions/0031): used to refuse a plan that was cut
short or belongs to another version before it is loaded, never as the source of truth. That
is the manifest's digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from enginefarm.errors import PlanDamaged
from enginefarm.names import RUNTIMES

HEADER_BYTES = 48
RUNTIME = next(name for name, row in RUNTIMES.items() if row.magic)
"""The one whose plans have such a header."""

MAGIC = RUNTIMES[RUNTIME].magic
_CAPABILITY_BITS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


@dataclass(frozen=True)
class PlanHeader:
    version: str
    size_bytes: int
    compute_capabilities: tuple[str, ...]


def read_plan_header(path: Path) -> PlanHeader:
    """The header of a TensorRT-RTX plan.

    Raises: PlanDamaged for a file that is not such a plan, or is shorter than it says.
    """
    with path.open("rb") as stream:
        head = stream.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES or head[:4] != MAGIC or head[28:32] != MAGIC:
        raise PlanDamaged(
            f"{path.name}: this is not a TensorRT-RTX plan", fix="pull the engine again"
        )
    size_bytes = int.from_bytes(head[16:24], "little")
    if size_bytes != path.stat().st_size:
        raise PlanDamaged(
            f"{path.name}: {path.stat().st_size} bytes, but its header says {size_bytes}",
            why="the file was cut short, or something was appended",
            fix="pull the engine again",
        )
    mask = int.from_bytes(head[32:36], "little")
    return PlanHeader(
        version=".".join(str(part) for part in head[24:28]),
        size_bytes=size_bytes,
        compute_capabilities=tuple(
            name for bit, name in enumerate(_CAPABILITY_BITS) if mask >> bit & 1
        ),
    )
