"""What a benchmark's `main` returns: each figure with its aim, to be read in one table."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """One number. The aims are those of the issues; a figure without one is shown as it is."""

    name: str
    measured: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """None without an aim."""
        if self.at_most is not None:
            return self.measured <= self.at_most
        return None if self.at_least is None else self.measured >= self.at_least

    def cells(self) -> tuple[str, str, str, str]:
        """Measured, aim, measured over aim, met: as the table shows them."""
        aim, sign = (self.at_most, "≤") if self.at_least is None else (self.at_least, "≥")
        shown = f"{number(self.measured)} {self.unit}".rstrip()
        if aim is None:
            return shown, "", "", ""
        ratio = f"{self.measured / aim:.2f}" if aim else ""
        return shown, f"{sign} {number(aim)}", ratio, "yes" if self.met else "**missed**"


def number(value: float) -> str:
    """Three digits that count, five places just below 1 (a cosine), and no exponent."""
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.5f}".rstrip("0").rstrip(".") if 0.9 <= value < 1 else f"{value:.3g}"
