"""ONNX's own suites through the stages, judged by their own expected outputs.

    make nodes                                       # fetches the wheels; 20 minutes on two cores
    python -m benchmarks.nodes --suite FOLDER --only 'lstm|gru' --jobs 1

Each model with one operator (onnx 1.16.2), and each that PyTorch wrote years ago (onnx 1.23.2),
becomes a recipe of static shapes. What the stages publish is run again here, apart from the
product: FP32 by ONNX Runtime with every optimization off, 16 bits by ONNX's reference evaluator,
which rounds after each operator, and where that does not agree, node by node (benchmarks/steps.py).
Beside it stands what TensorRT-RTX says, for a GPU of compute
capability 8.0, to the suite's model as it is and to ours.

Results are lines of JSON in a file, one a model: a run that is stopped goes on where it was.
The table names how many models were run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from enginefarm import names
from enginefarm.child.call import Answer, Child
from enginefarm.documents.gpus import gpu
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import BuildSpec, GpuTarget, PrecisionUse, ToolUse
from enginefarm.errors import EnginefarmError, one_line
from enginefarm.graph.exporting import export, slim
from enginefarm.graph.model import onnx_shapes
from enginefarm.graph.precisions import precision
from enginefarm.graph.samples import feeds
from enginefarm.graph.samples.data import calibration_batches
from enginefarm.graph.verification import verify
from enginefarm.graph.verification.reference import make_reference
from enginefarm.planning.plan import shape_profiles
from enginefarm.toolchains import BuildRequest, toolchain

onnx: Any = import_module("onnx")  # typed in part
Array = np.ndarray[Any, Any]

WHEELS = (("1.16.2", ("node",)), ("1.23.2", ("pytorch-converted", "pytorch-operator", "simple")))
"""Release of onnx, and the folders of its suite that are run."""
INSIDE = Path("onnx/backend/test/data")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
SIXTEEN = ("fp16", "bf16")
GPU = "a100"
RELATIVE = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.15, "int8": 0.5}
"""Relative L2 to the suite's own outputs above which a published graph is wrong: some five
times what a default budget allows, since the suite's outputs were rounded elsewhere."""
ABSOLUTE = 1e-5
TABLE = Path("docs/measurements/onnx-nodes.md")


def models(suites: Iterable[Path], only: str) -> list[Path]:
    """Folders that hold a model and its data, in the order of their names."""
    found = [
        path.parent
        for suite in suites
        for path in suite.rglob("model.onnx")
        if path.parent.parent.name in {kind for _, kinds in WHEELS for kind in kinds}
        and (path.parent / "test_data_set_0").is_dir()
    ]
    # The later wheel has the older folders again.
    named = {f"{path.parent.name}/{path.name}": path for path in found}
    return [named[name] for name in sorted(named) if re.search(only, name)]


def arrays(folder: Path, role: str) -> list[Array]:
    """The first data set's inputs or outputs. TypeError: it is not a tensor."""
    count = len(list((folder / "test_data_set_0").glob(f"{role}_*.pb")))
    made: list[Array] = []
    for index in range(count):
        tensor = onnx.TensorProto()
        tensor.ParseFromString((folder / "test_data_set_0" / f"{role}_{index}.pb").read_bytes())
        made.append(onnx.numpy_helper.to_array(tensor))
    return made


def of_bfloat16(array: Array) -> Array:
    """As float32, which holds them: the suite has their bits as uint16, or ml_dtypes' numbers."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def recipe(folder: Path, model: Any, work: Path) -> Recipe:
    """A recipe of static shapes whose data is the suite's own input."""
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in weights]
    signature = onnx_shapes.input_signature(model)
    given = {
        name: of_bfloat16(array) if signature[name][0] == "bfloat16" else array
        for name, array in zip(names, arrays(folder, "input"), strict=False)
    }
    (work / "data").mkdir()
    savez: Any = np.savez  # its own arguments are typed, ours are names of inputs
    shutil.copyfile(folder / "model.onnx", work / "model.onnx")
    savez(work / "data" / "0.npz", **given)
    inputs = [
        {
            "name": each,
            "dtype": {"float64": "float32"}.get(signature[each][0], signature[each][0]),
            "shape": list(given[each].shape),
        }
        for each in names
    ]
    if any(kind == "float64" for kind, _ in signature.values()):
        made = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in given.items()}
        savez(work / "data" / "0.npz", **made)
    batch = next((array.shape[0] for array in given.values() if array.ndim), 1)
    floats = [array for array in given.values() if array.dtype.kind == "f"]
    data = {"path": "data", "not_finite": not all(np.isfinite(one).all() for one in floats)}
    return Recipe.model_validate(
        {
            "name": "node",
            "source": {"kind": "onnx", "path": "model.onnx"},
            "inputs": inputs,
            "profiles": [{"dims": {}}],
            "precisions": list(PRECISIONS),
            "gpus": [GPU],
            "calibration": {"data": data, "batches": 1, "batch_size": max(batch, 1)},
            "verification": {"data": data, "batches": 1, "batch_size": max(batch, 1)},
        }
    ).at(work)


def one(folder: Path, precisions: Iterable[str], build: bool) -> dict[str, Any]:
    """What became of one model: a line for its stages, and one for each precision."""
    found: dict[str, Any] = {"model": f"{folder.parent.name}/{folder.name}", "precisions": {}}
    with tempfile.TemporaryDirectory(prefix="nodes-") as name:
        work = Path(name)
        model = onnx.load(folder / "model.onnx")
        found["operators"] = sorted({node.op_type for node in model.graph.node})
        try:
            wanted = recipe(folder, model, work)
        except (EnginefarmError, ValueError, TypeError) as error:
            return {**found, "stage": f"recipe: {one_line(error, 200)}"}
        if build:
            found["bare"] = built(folder / "model.onnx", wanted, work / "bare")
        try:
            made = export.export_onnx(wanted, work / "export")
            reference = make_reference(
                wanted, made.model, work / "reference.npz", outputs=made.outputs
            )
            batch = feeds.sample(wanted)
            corners = [feeds.sized(batch, wanted, dims) for _, dims in feeds.corners(wanted)]
            slimmed = slim.slim_onnx(made.path, work / "slim", corners)
        except EnginefarmError as error:
            return {**found, "stage": f"{type(error).__name__}: {one_line(error, 300)}"}
        except Exception:
            return {
                **found,
                "stage": f"TRACEBACK {one_line(traceback.format_exc(limit=-2))}",
            }
        found["notes"] = [*made.notes, *([slimmed.refused] if slimmed.refused else [])]
        for which in precisions:
            found["precisions"][which] = graded(
                wanted, which, slimmed.path, reference, folder, work, build
            )
    return found


def graded(
    wanted: Recipe,
    which: str,
    slimmed: Path,
    reference: Path,
    folder: Path,
    work: Path,
    build: bool,
) -> dict[str, Any]:
    """One precision: passed or not and why, what the suite says to it, and the builder."""
    try:
        batches = calibration_batches(wanted) if names.PRECISIONS[which].calibrated else ()
        made = precision(which).convert(slimmed, work / which, wanted, batches)
        verdict = verify.verify_graph(
            made.path, reference, wanted.budget(which), wanted.verification.comparing
        )
    except EnginefarmError as error:
        return {
            "passed": False,
            "why": f"{type(error).__name__}: {one_line(error, 300)}",
        }
    except Exception:
        return {
            "passed": False,
            "why": f"TRACEBACK {one_line(traceback.format_exc(limit=-2))}",
        }
    found: dict[str, Any] = {"passed": verdict.passed, "why": "; ".join(verdict.over_budget)[:300]}
    if verdict.passed:
        found["judge"], found["off"] = judged(made.path, which, folder, wanted)
        if build:
            found["builder"] = built(made.path, wanted, work / f"plan-{which}")
    return found


def judged(path: Path, which: str, folder: Path, wanted: Recipe) -> tuple[str, float | None]:
    """Who ran the published graph here, and how far it is from the suite's own outputs."""
    with np.load(wanted.root / "data" / "0.npz") as archive:
        inputs = {name: archive[name] for name in archive.files}
    theirs = _given(folder)
    if any(
        np.isfinite(theirs[name]).sum() > np.isfinite(one).sum() for name, one in inputs.items()
    ):
        return "nobody: float32 cannot hold the suite's float64 numbers", None
    said: list[str] = []
    found: list[tuple[str, float]] = []
    for judge in JUDGES["sixteen" if which in SIXTEEN else "others"]:
        if not _knows(judge, folder, theirs):
            said.append("the judge does not agree with the suite on the suite's own model")
            continue
        try:
            pairs = zip(arrays(folder, "output"), judge(path, inputs), strict=True)
            off = max((_off(want, have) for want, have in pairs), default=0.0)
        except Exception as error:
            said.append(one_line(error, 120))
            continue
        found.append((judge.__name__, off))
        if off <= RELATIVE[which]:
            break
    if not found:
        return f"nobody: {said[0]}", None
    return min(found, key=lambda one: one[1])


def _knows(judge: Judge, folder: Path, inputs: dict[str, Array]) -> bool:
    """Whether the judge gives what the suite expects for the suite's own model. One that cannot
    run it at all (an old opset, say) may judge ours."""
    try:
        pairs = zip(arrays(folder, "output"), judge(folder / "model.onnx", inputs), strict=True)
        return all(_off(want, have) <= RELATIVE["fp32"] for want, have in pairs)
    except Exception:
        return True


def _given(folder: Path) -> dict[str, Array]:
    model = onnx.load(folder / "model.onnx")
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in weights]
    return dict(zip(names, arrays(folder, "input"), strict=False))


def onnx_reference(path: Path, inputs: dict[str, Any]) -> list[Any]:
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(os.fspath(path))
    return evaluator.run(None, inputs)


def step_by_step(path: Path, inputs: dict[str, Any]) -> list[Any]:
    from benchmarks.steps import Steps

    return list(Steps(path).run(inputs).values())


def onnx_runtime(path: Path, inputs: dict[str, Any]) -> list[Any]:
    return plain(path).run(None, inputs)


Judge = Callable[[Path, dict[str, Any]], list[Any]]
JUDGES: dict[str, tuple[Judge, ...]] = {
    "sixteen": (onnx_reference, step_by_step),
    "others": (onnx_runtime,),
}
"""Who runs a published graph, in this order, until one agrees with the suite: ONNX's own evaluator
takes a BatchNormalization with `momentum` for one that trains, pads a MaxPool in BF16 with the
largest number, and has no Det in 16 bits."""


def plain(path: Path) -> Any:
    """ONNX Runtime's session on the CPU, with every optimization off."""
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def _off(want: Array, have: Array) -> float:
    have = np.asarray(have)
    if want.shape != have.shape:
        return float("inf")
    if want.dtype.itemsize == 1 and want.dtype.kind in "iu":  # quantized: a tie may go either way
        return float(np.mean(np.abs(want.astype(int) - have.astype(int)) > 1)) if want.size else 0.0
    if want.dtype.kind in "biuSUO":
        return 0.0 if want.size == 0 else float(np.mean(want != have))
    want, have = want.astype(np.float64), have.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], have[~finite], equal_nan=True):
        return float("inf")
    difference = float(np.linalg.norm(want[finite] - have[finite]))
    if difference <= ABSOLUTE * max(finite.sum(), 1) ** 0.5:
        return 0.0
    return difference / max(float(np.linalg.norm(want[finite])), 1e-30)


def built(path: Path, wanted: Recipe, folder: Path, label: str = GPU) -> str:
    """`builds`, or what TensorRT-RTX says to the graph for the GPU."""
    folder.mkdir()
    tool = toolchain("tensorrt-rtx")
    none = ToolUse(name="none", version="0")
    spec = BuildSpec(
        onnx_digest="0" * 64,
        exporter=none,
        slimmer=none,
        precision=PrecisionUse(name="fp32", tools=()),
        profiles=shape_profiles(wanted),
        gpu=GpuTarget(label=label, compute_capability=gpu(label).compute_capability),
        toolchain=tool.identity(),
        builder=wanted.builder,
    )
    try:
        tool.build(BuildRequest(spec=spec, onnx=path.resolve(), work_dir=folder))
    except Exception as error:
        return one_line(f"{type(error).__name__}: {error}", 240)
    return "builds"


def work(results: Path, folders: list[Path], precisions: list[str], build: bool) -> None:
    """In a process of its own: a crash of native code ends it, and the parent goes on."""
    _without_children()
    for folder in folders:
        with results.open("a") as stream:
            print(json.dumps({"begun": f"{folder.parent.name}/{folder.name}"}), file=stream)
        line = one(folder, precisions, build)
        with results.open("a") as stream:
            print(json.dumps(line), file=stream, flush=True)


def _without_children() -> None:
    """The product's child processes as plain calls: this process is one already, and starting
    six more for a model of one node would take hours."""

    def here(child: Child, function: str, request: str) -> Answer:
        module, _, name = function.partition(":")
        run: Callable[[str], str] = getattr(import_module(module), name)
        return Answer(run(request), 0)

    vars_of: Any = Child
    vars_of.call = here


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Newest result of each model; one that was begun and has no end crashed its process."""
    found: dict[str, dict[str, Any]] = {}
    for text in results.read_text().splitlines() if results.exists() else []:
        line = json.loads(text)
        if "begun" in line:
            found[line["begun"]] = {
                "model": line["begun"],
                "stage": "CRASH of the process",
                "operators": [],
                "precisions": {},
            }
        else:
            found[line["model"]] = line
    return found


def suites(folder: Path) -> list[Path]:
    """The suites of both wheels, fetched by pip into the folder unless they are there."""
    made: list[Path] = []
    for release, _ in WHEELS:
        into = folder / f"onnx-{release}"
        if not into.is_dir():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
            subprocess.run([*command, f"onnx=={release}"], check=True)
            wheel = next(folder.glob(f"onnx-{release}-*.whl"))
            subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, into], check=True)
        made.append(into / INSIDE)
    return made


def wrong(which: str, found: dict[str, Any]) -> bool:
    """A graph that the product passed and the suite does not."""
    off = found.get("off")
    return bool(found["passed"] and off is not None and not off <= RELATIVE[which])


def table(found: dict[str, dict[str, Any]], total: int) -> str:
    """Markdown: figures by precision, then by operator, then every exception by kind."""
    rows = list(found.values())
    bare = [row for row in rows if row.get("bare") == "builds"]
    broken = [
        str(row["model"])
        for row in rows
        if "TRACEBACK" in json.dumps(row) or "CRASH" in str(row.get("stage"))
    ]
    packages = ("onnx", "onnxruntime", "onnxslim", "tensorrt-rtx-cu13-libs")
    whole = "" if len(rows) == total else "; of the others nothing is known here"
    return "\n".join(
        [
            "# ONNX's own suites",
            "",
            f"`make nodes`: {machine.described(*packages)}.",
            "",
            f"{len(rows)} of {total} models were run{whole}. The bare TensorRT-RTX builder takes "
            f"{len(bare)} of these for compute capability 8.0. Tracebacks and crashes of a "
            f"process: {len(broken)}{': ' if broken else ''}{', '.join(broken)}.",
            "",
            *_by_precision(rows, bare),
            "",
            *_beside(bare),
            "",
            *_by_operator(rows),
            "",
            *_exceptions(rows),
            "",
        ]
    )


def _by_precision(rows: list[Any], bare: list[Any]) -> list[str]:
    lines = [
        "| precision | pass our verification | of those that the bare builder takes | ours builds "
        "of these | wrong by the suite | judged by nobody |",
        "|---|---|---|---|---|---|",
    ]
    nothing: dict[str, Any] = {"passed": False}
    for which in PRECISIONS:
        of = [row["precisions"][which] for row in rows if which in row["precisions"]]
        theirs = [row["precisions"].get(which, nothing) for row in bare]
        cells = (
            f"{sum(one['passed'] for one in of)} of {len(of)}",
            f"{sum(one['passed'] for one in theirs)} of {len(theirs)}",
            sum(one.get("builder") == "builds" for one in theirs),
            sum(wrong(which, one) for one in of),
            sum(one["passed"] and one.get("off") is None for one in of),
        )
        lines.append(f"| {which} | {' | '.join(map(str, cells))} |")
    return lines


def _beside(bare: list[Any]) -> list[str]:
    """Each model that the bare builder takes and ours does not pass or build."""
    lines = [
        "## Where ours does not follow the bare builder",
        "",
        "| model | from | why |",
        "|---|---|---|",
    ]
    for row in bare:
        found = {which: one for which, one in row["precisions"].items() if which != "int8"}
        reasons = {"the stages": row["stage"]} if row.get("stage") else {}
        reasons |= {which: one["why"] for which, one in found.items() if not one["passed"]}
        reasons |= {
            which: one["builder"]
            for which, one in found.items()
            if one.get("builder", "builds") != "builds"
        }
        for where, why in reasons.items():
            lines.append(f"| {row['model']} | {where} | {why[:160].replace('|', '/')} |")
    return lines


def _by_operator(rows: list[Any]) -> list[str]:
    lines = [
        "## By operator: models, those that the bare builder takes, and those that pass",
        "",
        f"| operators of the model | models | bare builder | {' | '.join(PRECISIONS)} |",
        f"|{'---|' * (3 + len(PRECISIONS))}",
    ]
    by: dict[str, list[Any]] = {}
    for row in rows:
        by.setdefault(", ".join(row["operators"][:3]) or "not read", []).append(row)
    for operator, group in sorted(by.items()):
        passed = (
            sum(bool(row["precisions"].get(which, {}).get("passed")) for row in group)
            for which in PRECISIONS
        )
        takes = sum(row.get("bare") == "builds" for row in group)
        lines.append(f"| {operator} | {len(group)} | {takes} | {' | '.join(map(str, passed))} |")
    return lines


def _exceptions(rows: list[Any]) -> list[str]:
    kinds: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.get("stage"):
            kinds["stages", _kind(row["stage"])] += 1
        for which, found in row["precisions"].items():
            if not found["passed"]:
                kinds[which, _kind(found["why"])] += 1
            elif wrong(which, found):
                kinds[which, f"WRONG by the suite: {row['model']} ({found['off']:.3g})"] += 1
            if row.get("bare") == "builds" and found.get("builder", "builds") != "builds":
                kinds[f"builder, {which}", f"{row['model']}: {found['builder'][:120]}"] += 1
    return [
        "## Why not",
        "",
        "| how many | where | why |",
        "|---|---|---|",
        *(
            f"| {count} | {where} | {why.replace('|', '/')} |"
            for (where, why), count in kinds.most_common()
        ),
    ]


def _kind(why: str) -> str:
    """The reason without names and numbers: what is counted."""
    plain = re.sub(r"'[^']*'", "'…'", why.split(" why: ")[0])
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", plain)[:140]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", type=Path, action="append", help="a folder that has the suite")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/enginefarm-nodes"))
    parser.add_argument("--only", default="", help="models whose name matches this expression")
    parser.add_argument("--every", type=int, default=1, help="only each N-th model")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--no-build", action="store_true", help="leave the builder out")
    parser.add_argument("--results", type=Path, help="lines of JSON; runs go on where it ends")
    parser.add_argument("--table", type=Path, help=f"write the table here ({TABLE})")
    parser.add_argument("--worker", nargs="*", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.scratch.mkdir(parents=True, exist_ok=True)
    results: Path = asked.results or asked.scratch / "results.jsonl"
    wanted: list[str] = asked.precision or list(PRECISIONS)
    if asked.worker is not None:
        work(results, asked.worker, wanted, not asked.no_build)
        return
    every = models(asked.suite or suites(asked.scratch), "")
    chosen = [m for m in every if re.search(asked.only, m.name)][:: asked.every]
    while True:
        done = read(results)
        left = [m for m in chosen if f"{m.parent.name}/{m.name}" not in done]
        if not left:
            break
        slices = [left[job :: asked.jobs][:50] for job in range(asked.jobs)]
        command = [sys.executable, "-m", "benchmarks.nodes", "--results", results]
        command += [part for which in wanted for part in ("--precision", which)]
        command += ["--no-build"] * asked.no_build
        running = [subprocess.Popen([*command, "--worker", *part]) for part in slices if part]
        for process in running:
            process.wait()
        print(f"{len(read(results))} of {len(every)}", flush=True)
    text = table(read(results), len(every))
    print(text)
    if asked.table:
        asked.table.write_text(text)


if __name__ == "__main__":
    main()
