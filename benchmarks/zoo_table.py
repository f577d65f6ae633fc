"""The zoo's matrix, figures and reasons, as Markdown."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine

GPUS = ("t4", "a100", "l4")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
THERE = ("built", "cached")
PACKAGES = ("onnx", "onnxruntime", "onnxslim", "torch", "tensorrt-rtx-cu13-libs")
Row = dict[str, Any]
MEANING = """Each cell: the engines that are published, and SQNR of their graph in dB, of the worst
output over all unseen data at min, opt and max of the profile. `–`: the GPU does not have that
precision. `no (n)`: nothing is published, for reason n below. `not run`: nothing is known.
**disagrees**: it is published, and this check says that it is wrong. `not judged`: it is
published, and this check could not run it, or did not end. * random weights: it shows that a
graph builds, and not what it loses.

FP32 graphs ran in ONNX Runtime with every optimization off; the others node by node, each result
that is stored in 16 bits rounded by numpy (benchmarks/steps.py). That sees overflow, rounding,
casts and sizes. It does not see rounding inside an operator, what TensorRT makes of a graph, or a
GPU: no plan ran here."""


def read(folder: Path) -> dict[str, Row]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def table(results: dict[str, Row], models: dict[str, Row]) -> str:
    """The whole page. results: by model; a model without one says so in each cell."""
    reasons: dict[str, int] = {}
    rows = [_model(name, row, results.get(name, {}), reasons) for name, row in models.items()]
    commits = sorted({e["commit"] for one in results.values() for e in one["engines"].values()})
    lines = [
        "# The zoo",
        "",
        f"`make zoo`: {machine.described(*PACKAGES)}; {dt.date.today()}; commits "
        f"{', '.join(commits) or 'none'}.",
        "",
        MEANING,
        "",
        *_summary(results, models),
        "",
        f"| model | {' | '.join(PRECISIONS)} |",
        f"|{'---|' * (len(PRECISIONS) + 1)}",
        *rows,
        "",
        "## Beside the figures",
        "",
        *_beside(results),
        "",
        "## Why nothing is published",
        "",
        *(f"{number}. {reason}" for reason, number in reasons.items()),
        "",
    ]
    return "\n".join(lines)


def wrong(results: dict[str, Row]) -> Iterator[tuple[str, Row]]:
    """Published graphs that disagree with their model."""
    for name, found in results.items():
        for graph in found["graphs"].values():
            if graph.get("disagrees"):
                yield name, graph


def _summary(results: dict[str, Row], models: dict[str, Row]) -> list[str]:
    there = [(n, e) for n, found in results.items() for e in found["engines"].values() if _is(e)]
    graphs = {(name, engine.get("graph")) for name, engine in there}
    judged = [g for name, g in graphs if "db" in results[name]["graphs"].get(g, {})]
    ran = [name for name in models if results.get(name, {}).get("engines")]
    asked_for = sum(len(found["engines"]) for found in results.values())
    files = sum(bool(found.get("exported")) for found in results.values())
    lines = [
        *(
            [
                f"{files} PyTorch models were exported to ONNX on another machine, and are judged "
                "against that file.\n"
            ]
            if files
            else []
        ),
        f"{len(ran)} of {len(models)} models were run: {asked_for} engines were asked for, of "
        f"{len(models) * len(GPUS) * len(PRECISIONS)} in the matrix. {len(there)} engines "
        f"are published, from {len(graphs)} graphs. "
        f"{len(judged)} of these graphs were judged here, and {len(list(wrong(results)))} disagree "
        "with their model.",
        "",
        "| GPU | the bare builder takes | FP16 is published for | for these of the builder's |",
        "|---|---|---|---|",
    ]
    for label in GPUS:
        said = {n: found["bare"][label] for n, found in results.items() if _tried(found, label)}
        bare = {name for name, text in said.items() if text == "builds"}
        asked = [n for n, found in results.items() if f"{label}/fp16" in found["engines"]]
        fp16 = {n for n in asked if _is(results[n]["engines"][f"{label}/fp16"])}
        cells = (
            f"{len(bare)} of {len(said)} files that it was given",
            f"{len(fp16)} of {len(asked)} models that were run",
            f"{len(bare & fp16)} of {len(bare & set(asked))}",
        )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _is(engine: Row) -> bool:
    return engine["status"] in THERE


def _tried(found: Row, label: str) -> bool:
    return label in found.get("bare", {})


def _model(name: str, row: Row, found: Row, reasons: dict[str, int]) -> str:
    title = f"{name}*" if row.get("random") else name
    if "not_run" in found:
        cells = iter([f"not run: {found['not_run']}"] * len(PRECISIONS))
        return f"| {title} | {' | '.join(cells)} |"
    cells = (cell(found, precision, reasons) for precision in PRECISIONS)
    return f"| {title} | {' | '.join(cells)} |"


def cell(found: Row, precision: str, reasons: dict[str, int]) -> str:
    """One precision of one model, its GPUs together where they have the same to say."""
    said: dict[str, list[str]] = {}
    for label in GPUS:
        engine = found.get("engines", {}).get(f"{label}/{precision}")
        said.setdefault(_engine(engine, found, precision, reasons), []).append(label)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{', '.join(labels)}: {text}" for text, labels in said.items())


def _engine(engine: Row | None, found: Row, precision: str, reasons: dict[str, int]) -> str:
    if engine is None:
        return "not run"
    if engine["status"] == "skipped" and "tensor cores" in engine.get("reason", ""):
        return "–"
    if not _is(engine):
        reason = plain(engine.get("reason", ""), engine["gpu"], precision)
        return f"no ({reasons.setdefault(reason, len(reasons) + 1)})"
    graph = found["graphs"].get(engine.get("graph"), {"not_judged": "not run"})
    if "not_judged" in graph:
        return "not judged"
    figure = "exact" if graph["db"] == 999 else f"{graph['db']} dB"
    return f"{figure} **disagrees**" if graph["disagrees"] else figure


def plain(reason: str, gpu: str, precision: str) -> str:
    """A reason in one line, without what differs from one GPU to the next."""
    one = re.sub(r"\s+", " ", reason).strip().replace("|", "/")
    return re.sub(rf"\b{gpu}\b", "GPU", one)[:700] or "it gave no reason"


def _beside(results: dict[str, Row]) -> list[str]:
    lines: list[str] = []
    for name, found in results.items():
        if "broken" in found:
            lines.append(f"- {name}: {found['broken']}.")
        for graph in found["graphs"].values():
            facts = [f"top-1 {graph['top1']:.1%}"] if "top1" in graph else []
            facts += [f"keeps {graph['kept']}"] if "kept" in graph else []
            facts += [f"not judged: {graph['not_judged']}"] if "not_judged" in graph else []
            facts += [f"**disagrees**: {'; '.join(graph.get('disagrees') or ())}"] * bool(
                graph.get("disagrees")
            )
            if facts:
                lines.append(f"- {name} {graph['precision']}: {'; '.join(facts)}.")
        for label, said in found.get("bare", {}).items():
            if said != "builds":
                lines.append(f"- {name}, the bare builder for {label}: {said[:300]}.")
    return lines
