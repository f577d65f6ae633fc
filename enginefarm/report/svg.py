"""Small SVG charts, drawn as text: no library in the page, colors by CSS class.

Every chart carries its figures as text or as a <title>, so nothing is shown by color alone.
Text from outside goes through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

LABEL_WIDTH = 168
WIDTH = 520
BAR_HEIGHT = 14
BAR_STEP = 24


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, without an exponent: 0.0123, 4.56, 1,230."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}"


def power(value: float, digits: int = 3) -> str:
    """For figures near zero: 1.2e-05 as 1.2 × 10⁻⁵."""
    if value == 0 or 0.001 <= abs(value) < 1000:
        return number(value, digits)
    mantissa, _, exponent = f"{value:.{min(digits - 1, 1)}e}".partition("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Bar:
    """One horizontal bar. `tone`: the CSS class that colors it; `to`: end of the whisker.

    doubtful: drawn pale, for a figure that is not to be trusted.
    """

    label: str
    value: float
    text: str
    tone: str
    to: float | None = None
    title: str = ""
    doubtful: bool = False


WHISKER_LIMIT = 1.5
"""Whiskers end at 1.5 × the longest bar: one stray p99 must not flatten every bar."""


def bars(items: Sequence[Bar], *, label_width: int) -> str:
    """Horizontal bars on one scale from zero, each with its figure at the end."""
    if not items:
        return ""
    text_width = 12 + 7 * max(len(item.text) for item in items)
    room = WIDTH - label_width - text_width
    longest = max(item.value for item in items)
    most = max(longest, min(max(item.to or 0 for item in items), WHISKER_LIMIT * longest)) or 1
    height = BAR_STEP * len(items)
    parts = [_open(WIDTH, height)]
    for index, item in enumerate(items):
        y = index * BAR_STEP + (BAR_STEP - BAR_HEIGHT) / 2
        middle = y + BAR_HEIGHT / 2
        length = max(2.0, item.value / most * room)
        end = length
        parts.append(f"<g><title>{escape(item.title or f'{item.label}: {item.text}')}</title>")
        parts.append(_text(label_width - 10, middle, item.label, "end", "label"))
        parts.append(
            f'<rect class="{item.tone}{" doubtful" if item.doubtful else ""}" x="{label_width}" '
            f'y="{y:g}" width="{length:.1f}" height="{BAR_HEIGHT}" rx="3"/>'
        )
        if item.to is not None and item.to > item.value:
            end = min(item.to, most) / most * room
            tip = "m0 -4v8" if item.to <= most else "m-4 -4l4 4l-4 4"
            parts.append(
                f'<path class="whisker" d="M{label_width + length:.1f} {middle:g}H'
                f'{label_width + end:.1f}{tip}"/>'
            )
        parts.append(_text(label_width + end + 8, middle, item.text, "start", "figure"))
        parts.append("</g>")
    parts.append("</svg>")
    return "".join(parts)


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    tone: str
    title: str
    label: str = ""


@dataclass(frozen=True)
class Track:
    """Dots joined by a line, in order."""

    name: str
    tone: str
    dots: tuple[Dot, ...]


def scatter(tracks: Sequence[Track], *, x_name: str, y_name: str) -> str:
    """Tracks on two logarithmic axes, each named at its last dot."""
    dots = [dot for track in tracks for dot in track.dots]
    if not dots:
        return ""
    width, height = WIDTH, 260
    left, right, top, bottom = 52, 96, 12, 38
    x_low, x_high = _decades([dot.x for dot in dots])
    y_low, y_high = _decades([dot.y for dot in dots])

    def at(dot: Dot) -> tuple[float, float]:
        across = (math.log10(dot.x) - x_low) / (x_high - x_low)
        up = (math.log10(dot.y) - y_low) / (y_high - y_low)
        return left + across * (width - left - right), height - bottom - up * (
            height - top - bottom
        )

    parts = [_open(width, height)]
    for value in _ticks(x_low, x_high):
        x = at(Dot(value, 10**y_low, "", ""))[0]
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{height - bottom}"/>')
        parts.append(_text(x, height - bottom + 13, number(value, 1), "middle", "tick"))
    for value in _ticks(y_low, y_high):
        y = at(Dot(10**x_low, value, "", ""))[1]
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        parts.append(_text(left - 8, y, number(value, 1), "end", "tick"))
    parts.append(_text((left + width - right) / 2, height - 7, x_name, "middle", "axis"))
    parts.append(_text(left, 4, y_name, "start", "axis"))
    ends = _spread([(at(track.dots[-1])[1], index) for index, track in enumerate(tracks)], 14)
    for index, track in enumerate(tracks):
        places = [at(dot) for dot in track.dots]
        if len(places) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(f'<path class="line {track.tone}" d="M{path}"/>')
        for dot, (x, y) in zip(track.dots, places, strict=True):
            parts.append(_circle(track.tone, x, y, 3.5, dot.title))
        x, y = places[-1][0], ends[index]
        parts.append(_text(x + 9, y, track.name, "start", "label"))
    parts.append("</svg>")
    return "".join(parts)


def dots(rows: Sequence[tuple[str, Sequence[Dot]]], *, x_name: str) -> str:
    """One row for each label, dots on one logarithmic axis (`x` alone counts)."""
    values = [dot.x for _, found in rows for dot in found if dot.x > 0]
    if not values:
        return ""
    low, high = _decades(values)
    left, right = LABEL_WIDTH, 24
    height = BAR_STEP * len(rows) + 34

    def across(value: float) -> float:
        share = (math.log10(value) - low) / (high - low) if value > 0 else 0
        return left + share * (WIDTH - left - right)

    parts = [_open(WIDTH, height)]
    for value in _ticks(low, high):
        x = across(value)
        parts.append(f'<path class="grid" d="M{x:.1f} 0V{height - 32}"/>')
        parts.append(_text(x, height - 20, power(value, 1), "middle", "tick"))
    parts.append(_text((left + WIDTH - right) / 2, height - 5, x_name, "middle", "axis"))
    for index, (label, found) in enumerate(rows):
        y = index * BAR_STEP + BAR_STEP / 2
        parts.append(_text(left - 10, y, label, "end", "label"))
        parts.append(f'<path class="grid" d="M{left} {y:g}H{WIDTH - right}"/>')
        for dot in found:
            parts.append(_circle(dot.tone, across(dot.x), y, 5, dot.title))
    parts.append("</svg>")
    return "".join(parts)


@dataclass(frozen=True)
class HistoryPoint:
    """One night: its place on the time axis (days), its figure, and its verdict."""

    day: int
    value: float
    state: str
    title: str


def history(points: Sequence[HistoryPoint], *, tone: str) -> str:
    """A line over the nights; dashed, its median. The axis does not start at zero.

    Slower nights are ringed, unstable ones hollow; a gap in the nights is a gap in the line.
    """
    width, height = 300, 84
    left, right, top, bottom = 6, 54, 10, 8
    first, last = points[0].day, points[-1].day
    values = sorted(point.value for point in points)
    # One wild night must not flatten the others: the axis ends at 1.6 × the middle.
    ceiling = min(values[-1], 1.6 * values[len(values) // 2]) * 1.08
    floor = max(0.0, min(values[0] * 0.92, values[len(values) // 2] * 0.8))

    def at(point: HistoryPoint) -> tuple[float, float]:
        share = (point.day - first) / max(1, last - first)
        up = (min(point.value, ceiling) - floor) / (ceiling - floor or 1)
        return left + share * (width - left - right), height - bottom - up * (height - top - bottom)

    places = [at(point) for point in points]
    middle = at(HistoryPoint(first, values[len(values) // 2], "", ""))[1]
    parts = [
        _open(width, height),
        f'<path class="usual" d="M{left} {middle:.1f}H{width - right}"/>',
    ]
    gap = _usual_gap([point.day for point in points])
    path = ""
    for index, (x, y) in enumerate(places):
        joined = index and points[index].day - points[index - 1].day <= 2 * gap
        path += f"{'L' if joined else 'M'}{x:.1f} {y:.1f}"
    parts.append(f'<path class="line {tone}" d="{path}"/>')
    for index, (point, (x, y)) in enumerate(zip(points, places, strict=True)):
        kind = {"slower": "slower", "faster": "faster", "unstable": "unstable"}.get(point.state, "")
        newest = index == len(points) - 1
        radius = 4.5 if kind in ("slower", "faster") else 3 if newest or kind else 1.6
        parts.append(_circle(kind or tone, x, y, radius, point.title))
    x, y = places[-1]
    parts.append(_text(x + 10, y, number(points[-1].value), "start", "figure"))
    parts.append("</svg>")
    return "".join(parts)


def _usual_gap(days: Sequence[int]) -> int:
    gaps = sorted(b - a for a, b in pairwise(days))
    return max(1, gaps[len(gaps) // 2]) if gaps else 1


def _open(width: int, height: float) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}" '
        'role="img" focusable="false">'
    )


def _text(x: float, y: float, words: str, anchor: str, kind: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" dy=".35em" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def _circle(kind: str, x: float, y: float, radius: float, title: str) -> str:
    return (
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
        f"<title>{escape(title)}</title></circle>"
    )


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """log10 of the axis' ends: a little wider than the values, never empty."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.08, (high - low) * 0.08)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each decade inside, or only 1 where there are many decades."""
    steps = (1,) if high - low > 3 else (1, 3) if high - low > 1.6 else (1, 2, 5)
    found = [
        step * 10.0**decade
        for decade in range(math.floor(low), math.ceil(high) + 1)
        for step in steps
        if low <= math.log10(step * 10.0**decade) <= high
    ]
    return found or [10 ** ((low + high) / 2)]


def _spread(places: list[tuple[float, int]], least: float) -> dict[int, float]:
    """Labels' heights, pushed apart where they would overlap."""
    out: dict[int, float] = {}
    previous = -math.inf
    for y, index in sorted(places):
        previous = max(y, previous + least)
        out[index] = previous
    return out
