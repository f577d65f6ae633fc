"""Kills parts of a real farm at random while it builds, then audits the store.

    python benchmarks/chaos.py --minutes 60      what `make chaos` runs
    python benchmarks/chaos.py --audit-only      audits the store of ENGINEFARM_STORE

A Prefect server, an S3 server, a control worker and a build worker, each a process, on real
small models. SIGKILL goes to a worker, the server, the store, a forkserver, a run or a builder.
What dies is started again, as a supervisor would. Then every run is waited for, what is missing is
asked for once more, and the store is read whole: each manifest complete, each blob's bytes of
its digest, nothing half-published. Exit status 1 when something is lost or wrong, or a run
has no end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

import psutil
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enginefarm.errors import EnginefarmError
from enginefarm.farm import recovery
from enginefarm.store import embedded, layout, open_store
from enginefarm.store.engine_store import EngineStore
from tests import tiny_recipe
from tests.farm.farm_fixture import Farm, database, farm_of

GPUS = ["t4", "l4"]
PRECISIONS = ["fp16", "int8"]
ENGINES = len(GPUS) * len(PRECISIONS)
OPEN_BUILDS = 2
WORKERS = {"control": ("--control",), "builds": ("--cpu",)}
BUILDER = "enginefarm.building.isolate:build_here"
FLOWS = ["build-model", "build-engine"]
SETTLE_S = 420


@dataclass
class Audit:
    """What the store holds, and what is wrong with it."""

    manifests: int = 0
    blobs: int = 0
    bytes_read: int = 0
    orphans: int = 0
    wrong: list[str] = field(default_factory=list)


def audit(store: EngineStore) -> Audit:
    """Reads every object. Blobs that no manifest names are counted, not wrong: stages' and gc's."""
    found = Audit()
    blobs = _check_blobs(store, found)
    named = set()
    indexed = {entry.spec_digest for entry in store.index()}
    for digest in store.digests(""):
        found.manifests += 1
        try:
            manifest = store.manifest(digest)
        except EnginefarmError as error:
            found.wrong.append(f"manifest {digest[:12]}: {error.what}")
            continue
        assert manifest is not None
        refs = [manifest.engine, manifest.graph.model, manifest.graph.data, manifest.reference]
        refs += [manifest.build.log, manifest.build.layers]
        for ref in (ref for ref in refs if ref is not None):
            named.add(ref.digest)
            if ref.digest not in blobs:
                found.wrong.append(f"manifest {digest[:12]}: blob {ref.digest[:12]} is missing")
            elif blobs[ref.digest] != ref.size_bytes:
                found.wrong.append(f"manifest {digest[:12]}: blob {ref.digest[:12]} has a size")
        if digest not in indexed:
            found.wrong.append(f"manifest {digest[:12]}: is not in the index")
        indexed.discard(digest)
    found.wrong += [f"index: {digest[:12]} has no manifest" for digest in sorted(indexed)]
    uploads = store.objects.client.list_multipart_uploads(
        Bucket=store.objects.bucket, Prefix=store.objects.full(layout.BLOBS)
    ).get("Uploads", [])
    found.orphans = len(blobs.keys() - named) + len(uploads)
    return found


def _check_blobs(store: EngineStore, found: Audit) -> dict[str, int]:
    """digest -> size of every blob, its bytes hashed."""
    sizes: dict[str, int] = {}
    for info in store.objects.list(layout.BLOBS):
        digest = info.key.rpartition("/")[2]
        hashed, size = hashlib.sha256(), 0
        body = store.objects.client.get_object(
            Bucket=store.objects.bucket, Key=store.objects.full(info.key)
        )["Body"]
        for chunk in body.iter_chunks(1 << 20):
            hashed.update(chunk)
            size += len(chunk)
        found.blobs += 1
        found.bytes_read += size
        sizes[digest] = size
        if hashed.hexdigest() != digest:
            found.wrong.append(f"blob {digest[:12]}: its bytes hash to something else")
    return sizes


class Chaos:
    """A farm, what is asked of it, and what is killed."""

    def __init__(self, farm: Farm, chance: random.Random) -> None:
        self.farm = farm
        self.chance = chance
        self.kills: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.asked: list[str] = []
        self.open: dict[UUID, str] = {}
        self.again = 0
        self.left: list[str] = []
        self.started = time.monotonic()

    def run(self, minutes: float, mean_s: float) -> None:
        deadline = time.monotonic() + 60 * minutes
        next_kill = time.monotonic() + 20  # the first builds are on their way
        while time.monotonic() < deadline:
            self.revive()
            with suppress(Exception):  # the server may be dead just now
                self.ask()
            if time.monotonic() > next_kill:
                self.kill_something()
                next_kill = time.monotonic() + self.chance.expovariate(1 / mean_s)
            time.sleep(0.5)

    def ask(self) -> None:
        """Keeps builds open: each recipe is a new one, by its salt."""
        if self.open:
            self.look()
        while len(self.open) < OPEN_BUILDS:
            name = f"chaos-{len(self.asked):04d}"
            tiny_recipe.write(
                self.farm.recipes / name, name=name, salt=name, gpus=GPUS, precisions=PRECISIONS
            )
            run = self.farm.submit("build-model/build-model", recipe=name)
            self.asked.append(name)
            self.open[run] = name

    def kill_something(self) -> None:
        victims: dict[str, Callable[[], psutil.Process | None]] = {
            **{f"{name} worker": lambda name=name: self.part(name) for name in WORKERS},
            "server": lambda: self.part("server"),
            "store": self.store,
            "forkserver": lambda: self.one_of(self.forkservers()),
            "run": lambda: self.one_of(run for one in self.forkservers() for run in one.children()),
            "builder": lambda: self.one_of(
                builder for name in self.working() for builder in self.farm.running(name, BUILDER)
            ),
        }
        # Builders live for a second or two: when there is one, it is taken half of the time.
        builder = victims["builder"]()
        kind = self.chance.choice(sorted(victims))
        if builder is not None and self.chance.random() < 0.5:
            kind = "builder"
        process = victims[kind]()
        if process is None:
            return
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
            self.kills[kind] += 1
            self.say(f"killed {kind}")
        time.sleep(self.chance.uniform(0, 3))

    def part(self, name: str) -> psutil.Process | None:
        process = self.farm.processes.get(name)
        return (
            None if process is None or process.poll() is not None else psutil.Process(process.pid)
        )

    def store(self) -> psutil.Process | None:
        server = embedded.running(self.farm.s3_home)
        return None if server is None else psutil.Process(server.pid)

    def working(self) -> list[str]:
        return [name for name in WORKERS if self.part(name) is not None]

    def forkservers(self) -> list[psutil.Process]:
        return [one for name in self.working() for one in self.farm.forkservers(name)]

    def one_of(self, processes: Iterable[psutil.Process]) -> psutil.Process | None:
        found = [*processes]
        return self.chance.choice(found) if found else None

    def revive(self) -> None:
        """Starts whatever is dead: killed by us, or ended because something else was."""
        if embedded.running(self.farm.s3_home) is None:
            with suppress(EnginefarmError):  # the next time
                embedded.start(self.farm.s3_home)
                self.restarts["store"] += 1
        if self.part("server") is None:
            self.farm.start("server", "server", "--port", str(self.farm.port))
            self.restarts["server"] += 1
        for name, arguments in WORKERS.items():
            if self.part(name) is None:
                self._tell_of_an_end_by_itself(name)
                self.farm.start(name, "worker", "--name", name, *arguments)
                self.restarts[f"{name} worker"] += 1

    def _tell_of_an_end_by_itself(self, name: str) -> None:
        ended = self.farm.processes.get(name)
        if ended is not None and ended.returncode != -signal.SIGKILL:
            last = " / ".join(self.farm.log(name).strip().splitlines()[-3:])
            self.say(f"{name} worker ended by itself with {ended.returncode}: {last}")

    def settle(self) -> list[str]:
        """No more kills: what is open may end, and what is missing is asked for once more.

        Gives the recipes that lack an engine after that.
        """
        self.say("no more kills")
        self._wait()
        for name in self.missing():
            run = self.farm.submit("build-model/build-model", recipe=name)
            self.open[run] = name
        self.again = len(self.open)
        self._wait()
        return self.missing()

    def wait_for_the_store(self) -> None:
        """The last kill may have been its own."""
        while embedded.running(self.farm.s3_home) is None:
            self.revive()

    def missing(self) -> list[str]:
        return [name for name in self.asked if len(self.farm.store.complete(name)) < ENGINES]

    def look(self) -> None:
        """Takes what has ended from what is open. A crash is no end while it is sent back."""
        for run in self.farm.runs(list(self.open)):
            if recovery.has_ended(run):
                self.open.pop(run.id, None)

    def endless(self) -> list[str]:
        """Runs, children too, that have not come to an end: name and state."""
        with self.farm.client() as client:
            found = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=FLOWS)),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(
                        type=FlowRunFilterStateType(
                            not_any_=[
                                StateType.COMPLETED,
                                StateType.FAILED,
                                StateType.CANCELLED,
                            ]
                        )
                    )
                ),
                limit=200,
            )
        return [f"{run.name} {run.state_name}" for run in found if not recovery.has_ended(run)]

    def _wait(self) -> None:
        deadline = time.monotonic() + SETTLE_S
        self.left = ["nobody has looked"]
        while self.left and time.monotonic() < deadline:
            self.revive()
            with suppress(Exception):  # the server may only be starting
                self.look()
                self.left = [*self.open.values(), *self.endless()]
            time.sleep(1)
        if self.left:
            self.say(f"no end after {SETTLE_S} s: {', '.join(self.left)}")
            self.open.clear()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:7.1f} s  {text}", file=sys.stderr, flush=True)


def chaos(minutes: float, mean_s: float, seed: int) -> dict[str, object]:
    with (
        tempfile.TemporaryDirectory(prefix="enginefarm-chaos") as folder,
        database() as url,
        farm_of(Path(folder), database=url) as farm,
    ):
        test = Chaos(farm, random.Random(seed))
        test.run(minutes, mean_s)
        test.wait_for_the_store()
        first = len(test.missing())
        ended = time.monotonic()
        lost = test.settle()
        settled = time.monotonic() - ended
        found = audit(farm.store)
        if lost:
            for name in ("control", "builds"):
                print(farm.log(name)[-3000:], file=sys.stderr)
        return {
            "minutes": minutes,
            "seed": seed,
            "kills": dict(test.kills),
            "kills in all": sum(test.kills.values()),
            "restarts": dict(test.restarts),
            "recipes asked for": len(test.asked),
            "engines asked for": len(test.asked) * ENGINES,
            "recipes unfinished when the kills ended": first,
            "recipes asked for once more": test.again,
            "lost": len(lost),
            "runs without an end": test.left,
            "seconds from the last kill to the last run's end": round(settled),
            **_said(found),
            "database": "SQLite" if url is None else "PostgreSQL",
            "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, "
            f"Prefect {version('prefect')}, load {os.getloadavg()[2]:.1f}",
        }


def _said(found: Audit) -> dict[str, object]:
    return {
        "manifests": found.manifests,
        "blobs read": found.blobs,
        "MB read": round(found.bytes_read / 1e6, 1),
        "blobs that no manifest names": found.orphans,
        "wrong": found.wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--mean-seconds", type=float, default=15, help="Between kills.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--audit-only", action="store_true")
    options = parser.parse_args()
    if options.audit_only:
        result = _said(audit(open_store()))
    else:
        result = chaos(options.minutes, options.mean_seconds, options.seed)
    print(json.dumps(result, indent=2))
    return 1 if any(map(result.get, ("wrong", "lost", "runs without an end"))) else 0


if __name__ == "__main__":
    sys.exit(main())
