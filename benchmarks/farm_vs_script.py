"""The farm against a bare script that makes the same library calls one after the other.

    python benchmarks/farm_vs_script.py [RECIPE] [--rounds 2]

Both start cold: empty store, empty cache, a fresh process each. The rounds alternate, so
that what else the machine does meets both alike. Then the farm's second run: what a cached
engine costs in process, and through Prefect.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.figures import Figure
from enginefarm.store import embedded

SCRIPT = """
import sys, tempfile, time
from pathlib import Path
from enginefarm.graph import feeds, work
from enginefarm.names import PRECISIONS
from enginefarm.planning import plan, stages, survey
from enginefarm.planning.graphs import precision_use
from enginefarm.recipes import file as recipe_file
from enginefarm.building.engine import Job
from enginefarm.graph.export import export_onnx
from enginefarm.documents.manifest import GraphVerification
from enginefarm.graph.precisions import precision
from enginefarm.graph.reference import make_reference
from enginefarm.graph.slim import slim_onnx, slim_tool
from enginefarm.documents.spec import BlobRef, OnnxRef
from enginefarm.toolchains import BuildRequest, toolchain
from enginefarm.graph.verify import verify_graph

recipe = recipe_file.load(Path(sys.argv[1]))
root = Path(tempfile.mkdtemp())
exported = export_onnx(recipe, root / "export")
reference = make_reference(recipe, exported.model, root / "r.npz", outputs=exported.outputs)
batch = feeds.sample(recipe)
corners = [feeds.sized(batch, recipe, dims) for _, dims in feeds.corners(recipe)]
slimmed = slim_onnx(exported.path, root / "slim", corners)
graphs = {}
for name in recipe.precisions:
    found = precision(name)
    batches = work.calibration_batches(recipe) if PRECISIONS[name].calibrated else ()
    graphs[name] = found.convert(slimmed.path, root / name, recipe, batches).path
    comparing = recipe.verification.comparing
    result = verify_graph(graphs[name], reference, recipe.budget(name), comparing)
    assert result.passed, result.over_budget
targets = plan.targets(recipe, survey.local_offers()).wanted
model = plan.Model(
    onnx=OnnxRef(model=BlobRef(digest="0" * 64, size_bytes=0), opset=exported.opset),
    exporter=exported.tool,
    slimmer=slim_tool(),
)
for target in targets:
    spec = plan.resolve(recipe, target, model, precision_use(recipe, target.precision))
    work = root / target.label
    work.mkdir(parents=True)
    request = BuildRequest(spec=spec, onnx=graphs[target.precision], work_dir=work)
    print(target.label, toolchain(spec.toolchain.name).build(request).plan.stat().st_size)
"""

CACHED = """
import sys, time
from pathlib import Path
from enginefarm.recipes import file as recipe_file
from enginefarm.planning import graphs, stages, survey
site, recipe = stages.here(), recipe_file.load(Path(sys.argv[1]))
survey.survey(site, recipe, survey.local_offers())
times = []
for _ in range(5):
    started = time.perf_counter()
    found = survey.survey(site, recipe, survey.local_offers())
    for planned in found.builds:
        assert planned.cached and site.store.manifest(planned.spec.digest)
    times.append((time.perf_counter() - started) / len(found.builds))
print(min(times), len(found.builds))
"""

FLOW = """
import sys, time
from enginefarm.farm.server.environment import prepare
from enginefarm.farm.server.private import private_api
prepare()
times = []
with private_api() as api:
    from flows.build_model import build_model
    api.wait()
    for _ in range(4):
        started = time.perf_counter()
        state = build_model(sys.argv[1], return_state=True)
        times.append(time.perf_counter() - started)
        assert state.name == "Cached", state
print(min(times[1:]) / len(state.result()))
"""


def timed(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def farm(recipe: Path, home: Path) -> tuple[list[str], dict[str, str]]:
    environment = {
        **os.environ,
        "ENGINEFARM_HOME": str(home / "home"),
        "ENGINEFARM_CACHE": str(home / "cache"),
    }
    code = "from enginefarm.cli import main; main()"
    return [sys.executable, "-c", code, "build", str(recipe)], environment


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path("examples/01_efficientnet_lite0/recipe.yaml")
    parser.add_argument("recipe", type=Path, nargs="?", default=default)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as folders:
        return measure(options, folders)


def measure(options: argparse.Namespace, folders: contextlib.ExitStack) -> list[Figure]:
    scripts: list[float] = []
    farms: list[float] = []
    command: list[str] = []
    environment: dict[str, str] = {}
    for _ in range(options.rounds):
        scripts.append(timed([sys.executable, "-c", SCRIPT, str(options.recipe)], dict(os.environ)))
        home = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="farm-bench-")))
        folders.callback(embedded.stop, home / "home" / "store")
        command, environment = farm(options.recipe, home)
        farms.append(timed(command, environment))
    # Starting Prefect's ephemeral API is paid once a command, not once an engine.
    second = timed(command, environment)
    again = subprocess.run(
        [sys.executable, "-c", CACHED, str(options.recipe)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    flow = subprocess.run(
        [sys.executable, "-c", FLOW, str(options.recipe.resolve())],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    script_s, farm_s = statistics.median(scripts), statistics.median(farms)
    print(machine.described("torch", "onnxruntime", "prefect"))
    print(f"recipe {options.recipe}, {again[1]} engines, median of {options.rounds} rounds")
    print(f"bare script, in sequence   {script_s:7.1f} s")
    print(f"farm, cold                 {farm_s:7.1f} s   ratio {farm_s / script_s:.2f} (aim 0.8)")
    print(f"farm, all cached           {second:7.1f} s   whole command")
    print(f"cached engine, in process  {float(again[0]) * 1000:7.1f} ms  (aim 20)")
    print(f"cached engine, by a flow   {float(flow[-1]) * 1000:7.1f} ms  (aim 300)")
    return [
        Figure("farm over a bare script, cold", farm_s / script_s, "×", at_most=0.8),
        Figure("bare script, cold", script_s, "s"),
        Figure("farm, cold", farm_s, "s"),
        Figure("farm, all cached, whole command", second, "s"),
        Figure("cached engine, in process", float(again[0]) * 1000, "ms", at_most=20),
        Figure("cached engine, by a flow", float(flow[-1]) * 1000, "ms", at_most=300),
    ]


if __name__ == "__main__":
    main()
