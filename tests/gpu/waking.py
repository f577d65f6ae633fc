"""What makes a lone pass late: what this host's thread did before it.

    python tests/gpu/waking.py RECIPE

RECIPE names an engine for the GPU at hand in this machine's store. Prints a Markdown table, medians
and p99 in ms: of the pass, of its part on the host (enqueuing), and of how late the thread woke.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from enginefarm.bench.shapes import OneProfile, first_profile
from enginefarm.run.engine import Engine
from enginefarm.run.session import Session
from enginefarm.store.site import here

GAPS_MS = (0.0, 0.5, 2.0, 10.0, 30.0)
PASSES = 200


def spin(until: float) -> None:
    while time.perf_counter() < until:
        pass


def sleep(until: float) -> None:
    time.sleep(max(0.0, until - time.perf_counter()))


def row(session: Session, gap_ms: float, wait: Callable[[float], None]) -> list[str]:
    """The cells of one way to wait."""
    passes, enqueuing, late = list[float](), list[float](), list[float]()
    for _ in range(PASSES):
        due = time.perf_counter() + gap_ms / 1000
        wait(due)
        began = time.perf_counter()
        session.enqueue()
        enqueued = time.perf_counter()
        session.stream.synchronize()
        passes.append(time.perf_counter() - began)
        enqueuing.append(enqueued - began)
        late.append(began - due)
    return [cell(found) for found in (passes, enqueuing, late)]


def cell(seconds: Sequence[float]) -> str:
    median, p99 = np.quantile(np.asarray(seconds) * 1000, [0.5, 0.99])
    return f"{median:.3f}, {p99:.3f}"


def main(recipe: str) -> None:
    site = here()
    manifest = max(site.store.manifests(recipe), key=lambda one: one.created_at)
    _, fields = first_profile(site, manifest)
    asked = OneProfile(**fields)
    print("| before the pass | CUDA graph | pass | of it enqueuing | woken late |")
    print("|---|---|---|---|---|")
    with Engine(asked.plan, toolchain=asked.toolchain, plugins=asked.plugins) as engine:
        for graph in (False, True):
            with engine.session(asked.profile, cuda_graph=graph) as session, engine.current():
                session.bind(asked.feeds())
                for wait, gap_ms in itertools.product((spin, sleep), GAPS_MS):
                    found = " | ".join(row(session, gap_ms, wait))
                    how = f"{wait.__name__} {gap_ms:g} ms"
                    print(f"| {how} | {'yes' if graph else 'no'} | {found} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
