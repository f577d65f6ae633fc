"""The farm against a bare script that makes the same library calls one after the other.

    python benchmarks/farm_vs_script.py [RECIPE] [--rounds 2]

The script makes the checks that the farm makes, so that both build from the same graphs. Between
the two stand the farm's own stages as plain functions in threads: everything that the
flow does, and no Prefect. All start cold: empty store, empty cache, a fresh process each. The
rounds alternate, so that what else the machine does meets all alike. CPU seconds include the
children, and not the store's server. Then the farm's second run: what a cached engine costs in
process, and through Prefect.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.figures import Figure
from enginefarm.store import embedded

SCRIPT = """
import sys, tempfile, time
from pathlib import Path
from enginefarm.graph.samples import data, feeds
from enginefarm.names import PRECISIONS
from enginefarm.planning import plan, stages, survey
from enginefarm.planning.graphs import precision_use
from enginefarm.recipes import file as recipe_file
from enginefarm.building.engine import Job
from enginefarm.graph.exporting.export import export_onnx, load
from enginefarm.documents.manifest import GraphVerification
from enginefarm.graph.precisions import precision, ranges
from enginefarm.graph.precisions.evidence import Evidence
from enginefarm.graph.verification import faithful
from enginefarm.graph.verification.reference import make_reference
from enginefarm.graph.exporting.slim import slim_onnx
from enginefarm.graph.exporting.use import export_tool, slim_tool
from enginefarm.documents.spec import BlobRef, OnnxRef
from enginefarm.toolchains import BuildRequest, toolchain
from enginefarm.graph.verification.verify import verify_graph

recipe = recipe_file.load(Path(sys.argv[1]))
root = Path(tempfile.mkdtemp())
exported = export_onnx(recipe, root / "export")
again = lambda: load(recipe, root / "again").model
npz, outputs = root / "r.npz", exported.outputs
reference = make_reference(recipe, exported.model, npz, outputs=outputs, again=again)
faithful.require(exported.path, reference, recipe, exported.model)
batch = feeds.sample(recipe)
corners = [feeds.sized(batch, recipe, dims) for _, dims in feeds.corners(recipe)]
slimmed = slim_onnx(exported.path, root / "slim", corners)
evidence = Evidence(reference, ranges.of_file(slimmed.path, reference))
graphs = {}
for name in recipe.precisions:
    found = precision(name)
    batches = data.calibration_batches(recipe) if PRECISIONS[name].calibrated else ()
    made = found.convert(slimmed.path, root / name, recipe, batches, evidence)
    graphs[name] = made.path
    comparing = recipe.verification.comparing
    result = verify_graph(graphs[name], reference, recipe.budget(name), comparing)
    assert result.passed, result.over_budget
targets = plan.targets(recipe, survey.local_offers()).wanted
model = plan.Model(
    onnx=OnnxRef(model=BlobRef(digest="0" * 64, size_bytes=0), opset=exported.opset),
    exporter=export_tool(recipe),
    slimmer=slim_tool(),
)
for target in targets:
    spec = plan.resolve(recipe, target, model, precision_use(recipe, target.precision))
    work = root / target.label
    work.mkdir(parents=True)
    request = BuildRequest(spec=spec, onnx=graphs[target.precision], work_dir=work)
    print(target.label, toolchain(spec.toolchain.name).build(request).plan.stat().st_size)
"""

STAGES = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from enginefarm.building import engine as engines
from enginefarm.planning import graphs, plan, stages, survey
from enginefarm.recipes import file as recipe_file
site, recipe = stages.here(), recipe_file.load(Path(sys.argv[1]))
found = survey.survey(site, recipe, survey.local_offers())
exported = stages.export(site, recipe)

def build(planned, graph):
    prepared, target = graph.result(), planned.target
    assert prepared.verification.passed
    spec = plan.resolve(recipe, target, slimmed.result().model, prepared.use)
    budget = recipe.budget(target.precision)
    job = engines.Job(recipe=recipe.name, spec=spec, prepared=prepared, budget=budget)
    return engines.publish(site, job, engines.upload(site, engines.build(site, job)))

def prepare(precision):
    return graphs.prepare(site, recipe, slimmed.result().model, reference.result(), precision)

with ThreadPoolExecutor(16) as pool:
    reference = pool.submit(stages.reference, site, recipe, exported.outputs)
    slimmed = pool.submit(stages.slim, site, recipe, exported)
    graph = {name: pool.submit(prepare, name) for name in recipe.precisions}
    built = [pool.submit(build, one, graph[one.target.precision]) for one in found.builds]
    for one in built:
        print(one.result().engine.size_bytes)
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


class Timing(NamedTuple):
    """One command, from its start to its end, children that it waited for included."""

    wall_s: float
    cpu_s: float


def timed(command: list[str], environment: dict[str, str]) -> Timing:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Timing(wall, sum(after[:2]) - sum(before[:2]))


def build_command(recipe: Path) -> list[str]:
    code = "from enginefarm.cli import main; main()"
    return [sys.executable, "-c", code, "build", str(recipe)]


def of_its_own(folders: contextlib.ExitStack) -> dict[str, str]:
    """The environment with an empty home and cache, which the stack removes."""
    home = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="farm-bench-")))
    folders.callback(embedded.stop, home / "home" / "store")
    return {
        **os.environ,
        "ENGINEFARM_HOME": str(home / "home"),
        "ENGINEFARM_CACHE": str(home / "cache"),
    }


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path("examples/01_efficientnet_lite0/recipe.yaml")
    parser.add_argument("recipe", type=Path, nargs="?", default=default)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as folders:
        return measure(options, folders)


def measure(options: argparse.Namespace, folders: contextlib.ExitStack) -> list[Figure]:
    recipe = str(options.recipe)
    command = build_command(options.recipe)
    environment: dict[str, str] = {}
    timings: dict[str, list[Timing]] = {"script": [], "stages": [], "farm": []}
    for _ in range(options.rounds):
        script = [sys.executable, "-c", SCRIPT, recipe]
        timings["script"].append(timed(script, dict(os.environ)))
        stages = [sys.executable, "-c", STAGES, recipe]
        timings["stages"].append(timed(stages, of_its_own(folders)))
        environment = of_its_own(folders)
        timings["farm"].append(timed(command, environment))
    # Starting Prefect's ephemeral API is paid once a command, not once an engine.
    second = timed(command, environment).wall_s
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
    wall = {name: statistics.median(t.wall_s for t in found) for name, found in timings.items()}
    cpu = {name: statistics.median(t.cpu_s for t in found) for name, found in timings.items()}
    ratio = {name: seconds / wall["script"] for name, seconds in wall.items()}
    print(machine.described("torch", "onnxruntime", "prefect"))
    print(f"recipe {recipe}, {again[1]} engines, median of {options.rounds} rounds")
    for name, label in (
        ("script", "bare script, in sequence"),
        ("stages", "stages, without Prefect"),
        ("farm", "farm, cold"),
    ):
        print(
            f"{label:26} {wall[name]:7.1f} s   ratio {ratio[name]:.2f}   "
            f"{cpu[name]:6.1f} s of the processor"
        )
    print(f"farm, all cached           {second:7.1f} s   whole command")
    print(f"cached engine, in process  {float(again[0]) * 1000:7.1f} ms  (aim 20)")
    print(f"cached engine, by a flow   {float(flow[-1]) * 1000:7.1f} ms  (aim 300)")
    return [
        Figure("farm over a bare script, cold", ratio["farm"], "×", at_most=0.8),
        Figure("stages without Prefect, over a bare script, cold", ratio["stages"], "×"),
        Figure("bare script, cold", wall["script"], "s"),
        Figure("farm, cold", wall["farm"], "s"),
        Figure("CPU of the farm, over the bare script", cpu["farm"] / cpu["script"], "×"),
        Figure("CPU of the stages, over the bare script", cpu["stages"] / cpu["script"], "×"),
        Figure("farm, all cached, whole command", second, "s"),
        Figure("cached engine, in process", float(again[0]) * 1000, "ms", at_most=20),
        Figure("cached engine, by a flow", float(flow[-1]) * 1000, "ms", at_most=300),
    ]


if __name__ == "__main__":
    main()
