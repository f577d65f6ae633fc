"""How often the regression verdict is wrong, on real timings.

    python benchmarks/regression.py

Reads the latencies in `benchmarks/data/*.parquet`: a calm GPU (one CUDA graph, which behaves as an
engine does), an eager model and ONNX Runtime on that GPU's host, and ONNX Runtime on a crowded
machine. Where each comes from is inside the file, and printed.
One session stands for one night. Sessions whose timings are unstable (coefficient of
variation above STABLE_COV) get no verdict and join no baseline, as in the nightly; the table
shows the rates with that gate and, for the default rule, without it. Two ways:

resampled  A night is a random session with its timings drawn again with replacement; the
           baseline is that many other random sessions. Nothing changed between them, so
           every `slower` is a false alarm.
in order   Each session is held against the sessions just before it, as a nightly would: the
           machine's drift stays in.

Caught: the same, with tonight's real timings multiplied by 1.07, 1.15, 1.25, 1.5.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq

from benchmarks.figures import Figure
from enginefarm.documents.thresholds import Regression
from enginefarm.tables.regression import baseline, classify
from enginefarm.tables.rows import STABLE_COV

DATA = Path(__file__).parent / "data"
SLOWDOWNS = (1.0, 1.07, 1.15, 1.25, 1.5)
THRICE = "the default, measured three times tonight"
DEFAULT = "1.10 × and 4 spreads, 14 nights (default)"
UNGATED = "the default, unstable sessions let in"

RULES: dict[str, Regression] = {
    "1.10 × median alone, 5 nights": Regression(spreads=0, nights=5),
    "1.10 × median alone, 14 nights": Regression(spreads=0),
    "1.10 × and 4 spreads, 5 nights": Regression(nights=5),
    DEFAULT: Regression(),
    "1.05 × and 4 spreads, 14 nights": Regression(latency_ratio=1.05),
    "1.03 × and 4 spreads, 14 nights": Regression(latency_ratio=1.03),
}


def sessions() -> tuple[dict[str, list[np.ndarray]], dict[str, object]]:
    """Latencies by model and session, in order of time; and where each file comes from."""
    found: dict[str, list[np.ndarray]] = {}
    provenance: dict[str, object] = {}
    for path in sorted(DATA.glob("*.parquet")):
        table = pq.read_table(path)
        provenance[path.name] = json.loads(table.schema.metadata[b"provenance"])
        for model, group in table.to_pandas().groupby("model"):
            nights = [part["latency_ms"].to_numpy() for _, part in group.groupby("session")]
            found[f"{model} ({path.stem})"] = nights
    return found, provenance


def cov(timings: np.ndarray) -> float:
    return float(timings.std() / timings.mean())


def resampled(
    nights: list[np.ndarray], rule: Regression, slowdown: float, trials: int, repeats: int = 1
) -> tuple[int, int]:
    """How many of the trials say `slower`. repeats: sessions measured tonight, by their median."""
    rng = np.random.default_rng(round(slowdown * 100))
    slower = 0
    for _ in range(trials):
        chosen = rng.choice(len(nights), size=rule.nights + repeats, replace=False)
        drawn = [float(np.median(rng.choice(nights[i], size=len(nights[i])))) for i in chosen]
        tonight = median(drawn[:repeats]) * slowdown
        slower += classify(tonight, baseline(drawn[repeats:], rule), rule) == "slower"
    return slower, trials


def thrice(
    nights: list[np.ndarray], rule: Regression, slowdown: float, trials: int
) -> tuple[int, int]:
    return resampled(nights, rule, slowdown, trials, repeats=3)


def in_order(
    nights: list[np.ndarray], rule: Regression, slowdown: float, trials: int
) -> tuple[int, int]:
    """The same over the sessions as they came; as many trials as there are sessions."""
    del trials
    figures = [float(np.median(night)) for night in nights]
    found = [
        classify(figures[i] * slowdown, baseline(figures[i - rule.nights : i], rule), rule)
        for i in range(rule.nights, len(figures))
    ]
    return found.count("slower"), len(found)


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    args = parser.parse_args(arguments)
    models, provenance = sessions()
    print(json.dumps(provenance, indent=2), "\n")
    stable = {
        model: [n for n in nights if cov(n) <= STABLE_COV] for model, nights in models.items()
    }
    for model, nights in models.items():
        for words, some in (("all", nights), ("stable", stable[model])):
            medians = [float(np.median(night)) for night in some]
            if not medians:
                print(f"{model}, {words}: none")
                continue
            print(
                f"{model}, {words}: {len(some)} sessions of {len(nights[0])} timings; session "
                f"medians {min(medians):.2f}–{max(medians):.2f} ms, middle {median(medians):.2f}"
            )
    figures: list[Figure] = []
    for name, how in (("resampled", resampled), ("in order", in_order)):
        heads = " | ".join(f"caught at × {s:g}" for s in SLOWDOWNS[1:])
        print(f"\n| {name}: timings | rule | verdicts | false alarms | {heads} |")
        print("|---|---|---:|---:|" + "---:|" * len(SLOWDOWNS[1:]))
        for model in models:
            cases = [(words, rule, stable[model], how) for words, rule in RULES.items()]
            if how is resampled:
                cases.append((THRICE, Regression(), stable[model], thrice))
            cases.append((UNGATED, Regression(), models[model], how))
            for words, rule, nights, count in cases:
                if len(nights) >= rule.nights + 3:
                    found = [count(nights, rule, slow, args.trials) for slow in SLOWDOWNS]
                    shares = " | ".join(f"{slower / trials:.1%}" for slower, trials in found)
                    print(f"| {model} | {words} | {found[0][1]} | {shares} |")
                    if words == DEFAULT and how is resampled:
                        rates = [100 * slower / trials for slower, trials in found]
                        figures.append(Figure(f"false alarms, {model}", rates[0], "%"))
                        figures.append(Figure(f"caught at × 1.15, {model}", rates[2], "%"))
    return figures


if __name__ == "__main__":
    main()
