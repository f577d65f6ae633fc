"""What a trtexec log says of the speed of an engine: the product only reads logs of builds."""

from __future__ import annotations

import re
from typing import NamedTuple

LINE = re.compile(
    r"\[I\] (Latency|H2D Latency|GPU Compute Time|D2H Latency): .*?\bmedian = ([\d.]+) ms"
)
RATE = re.compile(r"\[I\] Throughput: ([\d.]+) qps")


class Medians(NamedTuple):
    """In ms; the rate in queries per second."""

    latency: float
    h2d: float
    compute: float
    d2h: float
    rate_qps: float


def medians(log: str) -> Medians:
    """Raises: ValueError where the log lacks one of the lines."""
    found = {name: float(value) for name, value in LINE.findall(log)}
    rate = RATE.search(log)
    names = ("Latency", "H2D Latency", "GPU Compute Time", "D2H Latency")
    if rate is None or not found.keys() >= set(names):
        raise ValueError(f"trtexec says nothing of its speed: {log[-2000:]}")
    latency, h2d, compute, d2h = (found[name] for name in names)
    return Medians(latency, h2d, compute, d2h, rate_qps=float(rate[1]))
