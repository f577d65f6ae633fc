"""How often the regression verdict is wrong, on real timings.

    python benchmarks/regression.py

Reads the latencies in `benchmarks/data/ort_cpu_timings.parquet` (provenance inside; printed).
One session stands for one night. Sessions whose timings are unstable (coefficient of
variation above STABLE_COV) get no verdict and join no baseline, as in the nightly; the table
shows the rates with that gate and, for the default rule, without it. Two ways:

resampled  A night is a random session with its timings drawn again with replacement; the
           baseline is that many other random sessions. Nothing changed between them, so
           every `slower` is a false alarm.
in order   Each session is held against the sessions just before it, as a nightly would: the
           machine's drift stays in.

Caught: the same, with tonight's real timings multiplied by 1.15, 1.25, 1.5.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq

from enginefarm.recipe import Regression
from enginefarm.regression import against, baseline
from enginefarm.rows import STABLE_COV

DATA = Path(__file__).parent / "data" / "ort_cpu_timings.parquet"
SLOWDOWNS = (1.0, 1.15, 1.25, 1.5)
UNGATED = "the default, unstable sessions let in"

RULES: dict[str, Regression] = {
    "median alone, 3 nights": Regression(spreads=0, nights=3),
    "median alone, 14 nights": Regression(spreads=0, nights=14),
    "median + 4 spreads, 3 nights": Regression(nights=3),
    "median + 4 spreads, 7 nights": Regression(nights=7),
    "median + 4 spreads, 14 nights (the default)": Regression(),
    "median + 6 spreads, 14 nights": Regression(spreads=6),
}


def sessions() -> tuple[dict[str, list[np.ndarray]], dict[str, object]]:
    """Latencies by model and session, in order of time; and where they come from."""
    table = pq.read_table(DATA)
    frame = table.to_pandas()
    out = {
        model: [part["latency_ms"].to_numpy() for _, part in group.groupby("session")]
        for model, group in frame.groupby("model")
    }
    return out, json.loads(table.schema.metadata[b"provenance"])


def cov(timings: np.ndarray) -> float:
    return float(timings.std() / timings.mean())


def resampled(
    nights: list[np.ndarray], rule: Regression, slowdown: float, trials: int
) -> tuple[int, int]:
    """How many of the trials say `slower`."""
    rng = np.random.default_rng(round(slowdown * 100))
    slower = 0
    for _ in range(trials):
        chosen = rng.choice(len(nights), size=rule.nights + 1, replace=False)
        drawn = [float(np.median(rng.choice(nights[i], size=len(nights[i])))) for i in chosen]
        slower += against(drawn[0] * slowdown, baseline(drawn[1:], rule), rule) == "slower"
    return slower, trials


def in_order(
    nights: list[np.ndarray], rule: Regression, slowdown: float, trials: int
) -> tuple[int, int]:
    """The same over the sessions as they came; as many trials as there are sessions."""
    del trials
    figures = [float(np.median(night)) for night in nights]
    found = [
        against(figures[i] * slowdown, baseline(figures[i - rule.nights : i], rule), rule)
        for i in range(rule.nights, len(figures))
    ]
    return found.count("slower"), len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    args = parser.parse_args()
    models, provenance = sessions()
    print(json.dumps(provenance, indent=2), "\n")
    stable = {
        model: [n for n in nights if cov(n) <= STABLE_COV] for model, nights in models.items()
    }
    for model, nights in models.items():
        for words, some in (("all", nights), ("stable", stable[model])):
            figures = [float(np.median(night)) for night in some]
            print(
                f"{model}, {words}: {len(some)} sessions of {len(nights[0])} timings; session "
                f"medians {min(figures):.2f}–{max(figures):.2f} ms, middle {median(figures):.2f}"
            )
    for name, how in (("resampled", resampled), ("in order", in_order)):
        heads = " | ".join(f"caught at × {s:g}" for s in SLOWDOWNS[1:])
        print(f"\n| {name}: model | rule | verdicts | false alarms | {heads} |")
        print("|---|---|---:|---:|" + "---:|" * len(SLOWDOWNS[1:]))
        for model in models:
            table = [(words, rule, stable[model]) for words, rule in RULES.items()]
            for words, rule, nights in [*table, (UNGATED, Regression(), models[model])]:
                if len(nights) <= rule.nights:
                    print(f"| {model} | {words} | 0 | too few stable sessions |")
                    continue
                found = [how(nights, rule, slowdown, args.trials) for slowdown in SLOWDOWNS]
                shares = " | ".join(f"{slower / trials:.1%}" for slower, trials in found)
                print(f"| {model} | {words} | {found[0][1]} | {shares} |")


if __name__ == "__main__":
    main()
