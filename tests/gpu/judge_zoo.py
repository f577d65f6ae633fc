"""Models that nobody here wrote, built and published on this GPU, and each engine judged again:

    python tests/gpu/judge_zoo.py SCRATCH PARTS NAME …      results in SCRATCH/gpu/NAME.json
    python tests/gpu/judge_zoo.py --table FOLDER            the page of the results in FOLDER

PARTS holds the models (`python -m benchmarks.zoo_export PARTS`). Each is built as `enginefarm
build` does it and verified by the farm's own task, which puts an engine that fails into
quarantine. An engine that is left is published, and runs here on data that nobody has seen, at
min, opt and max of its profile and at an odd size between them, against the model as it came in
ONNX Runtime, FP32, every optimization off.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from benchmarks import machine, zoo, zoo_check
from benchmarks.zoo_judge import Figures
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EnginefarmError
from enginefarm.graph.samples import feeds
from enginefarm.host.detect import first_gpu
from enginefarm.recipes import file as recipe_file
from enginefarm.run.artifacts import open_artifact
from enginefarm.run.running import OpenRequest
from enginefarm.store.site import here, materialize

LABEL = os.environ.get("ENGINEFARM_GPU_LABEL", "h100")
LEVEL = int(os.environ.get("ENGINEFARM_GPU_OPTIMIZATION", "3"))
PRECISIONS = ("fp32", "fp16", "int8")
PACKAGES = ("onnx", "onnxruntime", "onnxslim", "tensorrt", "tensorrt-bindings", "pycuda")
BUILDER = {
    "optimization_level": LEVEL,
    # cuBLAS and cuDNN of CUDA 12 are not on the machine.
    "tactic_sources": ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"],
}
Row = dict[str, Any]


def one_model(name: str, scratch: Path, parts: Path) -> None:
    row = zoo.as_file(name, zoo.models()[name], parts)
    folder, file = zoo.placed(name, row, scratch, parts), scratch / "gpu" / f"{name}.json"
    precisions = [one for one in PRECISIONS if one in row.get("precisions", PRECISIONS)]
    written = zoo.recipe(name, row) | {
        "precisions": precisions,
        "gpus": [LABEL],
        "toolchain": "tensorrt",
        "builder": BUILDER,
    }
    (folder / "recipe-gpu.yaml").write_text(json.dumps(written, indent=1))
    os.environ.update(zoo.environment(scratch))
    os.chdir(folder)
    recipe, known = recipe_file.load(folder / "recipe-gpu.yaml"), {}
    for precision in precisions:
        started = time.monotonic()
        found = zoo.build(folder, scratch, [LABEL], [precision], recipe="recipe-gpu.yaml")[0]
        known[precision] = {**found, "seconds": round(time.monotonic() - started)}
        keep(file, known)
        if found["status"] not in ("built", "cached"):
            continue
        try:
            device = verified(found["spec_digest"], recipe, precision).device_verification
            known[precision]["device"] = device.model_dump(mode="json")
            keep(file, known)
            if device.status == "passed":
                known[precision]["judged"] = judged(folder, row, recipe, found["spec_digest"])
        except Exception as why:
            known[precision]["broken"] = f"{type(why).__name__}: {why}"[:800]
        keep(file, known)


def keep(file: Path, known: Row) -> None:
    gpu = first_gpu()
    where = f"{gpu.name}, driver {gpu.driver}" if gpu else "no GPU"
    packages = ", ".join(f"{one} {version(one)}" for one in PACKAGES)
    where = f"{where}, {machine.processor()}, {os.cpu_count()} cores, {packages}"
    file.parent.mkdir(parents=True, exist_ok=True)
    made = {"machine": where, "commit": os.environ.get("ENGINEFARM_COMMIT", "")}
    file.write_text(json.dumps({**made, "level": LEVEL, "engines": known}, indent=1))


def verified(spec_digest: str, recipe: Recipe, precision: str) -> Manifest:
    """What the farm does before it publishes: its own task, outside a run."""
    from prefect.logging import disable_run_logger

    from tasks.device import verify_on_gpu

    scores = tuple(recipe.verification.class_scores)
    with disable_run_logger():
        return verify_on_gpu.fn(spec_digest, recipe.budget(precision), scores)


def judged(folder: Path, row: Row, recipe: Recipe, spec_digest: str) -> Row:
    """Figures of the published engine, and why it disagrees with the model as it came."""
    site = here()
    manifest = site.store.manifest(spec_digest)
    assert manifest is not None, "it has just passed"
    figures = Figures(row.get("class_scores", ()), row.get("found", ""))
    sizes = 0
    with tempfile.TemporaryDirectory(prefix="zoo-") as work:
        graph = materialize(site, manifest.graph, Path(work))
        names = [one.name for one in onnx.load(graph, load_external_data=False).graph.output]
        reference = zoo_check.as_it_came(recipe, folder, Path(work) / "source")
        plan = site.cache.ensure(site.store, manifest.engine)
        with open_artifact(
            OpenRequest(plan=plan, toolchain=manifest.spec.toolchain.name)
        ) as artifact:
            running = artifact.running(recipe.name)
            try:
                for where, inputs, wanted in compared(recipe, reference):
                    running.bind(inputs)
                    running.iterate()
                    made = running.outputs()
                    for name, one in zip(names, wanted, strict=True):
                        figures.add(name, one, made[name], where)
                    sizes += 1
            finally:
                running.close()
    budget, outputs = recipe.budget(manifest.precision), manifest.verification.outputs
    why = figures.verdict(
        budget,
        budget.rounding * max((one.rounding for one in outputs), default=0.0),
        budget.rounding * max((one.rounding for o in outputs for one in o.parts), default=0.0),
    )
    return {**figures.shown(), "passes": sizes, "disagrees": why}


def compared(recipe: Recipe, reference: zoo_check.Runner) -> Iterator[tuple[str, Row, list[Any]]]:
    """Unseen data, and what the model says of it. Of the sizes between the corners the first is
    taken that the model itself can run."""
    first: Row | None = None
    for where, inputs in zoo_check.unseen(recipe):
        first = first or inputs
        yield where, inputs, reference(inputs)
    assert first is not None, "every recipe has data"
    for options in feeds.inside(recipe):
        for where, dims in options:
            inputs = feeds.sized(first, recipe, dims)
            try:
                wanted = reference(inputs)
            except Exception:  # ONNX Runtime's own: the model does not take this size
                continue
            yield where, inputs, wanted
            break


def table(folder: Path) -> str:
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    reasons: dict[str, int] = {}
    counts: dict[str, int] = {}
    rows = []
    for name, row in zoo.models().items():
        title = f"{name}*" if row.get("random") else name
        engines = found.get(name, {}).get("engines", {})
        cells = [cell(engines.get(one), reasons, counts) for one in PRECISIONS]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    machines = sorted({one["machine"] for one in found.values()})
    commits = sorted({f"{one['commit']} at level {one['level']}" for one in found.values()})
    passes = sum(
        engine["judged"]["passes"]
        for one in found.values()
        for engine in one["engines"].values()
        if "judged" in engine
    )
    lines = [
        *(f"{one}." for one in machines),
        f"Commits: {', '.join(commits)}.",
        "",
        ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
        + f"; {passes} passes were compared.",
        "",
        f"| model | {' | '.join(PRECISIONS)} |",
        f"|{'---|' * (len(PRECISIONS) + 1)}",
        *rows,
        "",
        *(f"{number}. {reason}" for reason, number in reasons.items()),
    ]
    return "\n".join(lines)


def cell(engine: Row | None, reasons: dict[str, int], counts: dict[str, int]) -> str:
    verdict, text = said(engine, reasons)
    counts[verdict] = counts.get(verdict, 0) + 1
    return text


def said(engine: Row | None, reasons: dict[str, int]) -> tuple[str, str]:
    """One engine: its verdict, and its cell."""
    if engine is None:
        return "not run", "not run"
    if "judged" in engine:
        figures = engine["judged"]
        shown = "exact" if figures["db"] == 999 else f"{figures['db']} dB"
        shown = f"{shown}, {figures['cosine']:.5f}"
        if figures["disagrees"]:
            return "disagree", f"**disagrees** {shown} ({'; '.join(figures['disagrees'])})"
        return "agree", shown
    device = engine.get("device", {})
    if device.get("status") == "failed":
        verdict, why = "refused on the GPU", device["reason"]
    elif "broken" in engine:
        verdict, why = "not judged", engine["broken"]
    elif engine["status"] in ("built", "cached"):
        return "not judged", "not judged: its run did not end"
    else:
        verdict, why = "refused", engine.get("reason", "")
    why = " ".join(why.split()).replace("|", "/")[:700] or "it gave no reason"
    return verdict, f"{verdict} ({reasons.setdefault(why, len(reasons) + 1)})"


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        print(table(Path(sys.argv[2])))
    else:
        for asked in sys.argv[3:]:
            try:
                one_model(asked, Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
            except EnginefarmError as error:
                raise SystemExit(f"{asked}: {type(error).__name__}: {error}") from error
