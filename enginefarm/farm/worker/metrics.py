"""Prometheus metrics of a worker and of the runs that it starts.

Each flow run is a separate process, so the counts live in files that all of them share
(prometheus-client's multiprocess mode) and the worker serves their sums. `serve` says where
the files are before it starts anything; without it, counts stay in the process that made them.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, make_server

from enginefarm import __version__
from enginefarm.errors import EnginefarmError, FarmError
from enginefarm.progress import SINK, Progress

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

    from enginefarm.documents.spec import BuildSpec

FILES = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client's own name for it
BUILD_SECONDS = (1, 5, 15, 60, 180, 600, 1800, 3600, 7200)

QueueDepth = Callable[[], Mapping[tuple[str, str], int]]
"""Runs that wait or run, by (work pool, state). Asked at each scrape."""


class Meters(NamedTuple):
    builds: Counter
    build_seconds: Histogram
    cached: Counter
    stages: Counter
    transferred: Counter


class Slot:
    """Which of a folder's files a process writes: a number that no running process has.

    By process id, which is the library's own way, every run would leave files behind for ever. A
    number is free again when its process has ended, and the next one continues counting there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid = 0
        self._number = 0
        self._held: IO[bytes] | None = None

    def __call__(self) -> int:
        if self._pid != os.getpid():  # the first call, or the first after a fork
            if self._held is not None:
                self._held.close()
            self._pid, (self._number, self._held) = os.getpid(), self._taken()
        return self._number

    def _taken(self) -> tuple[int, IO[bytes]]:
        for number in itertools.count():
            handle = (self._folder / f"slot-{number}").open("ab")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.close()
                continue
            return number, handle
        raise AssertionError("there is always another number")


FIRST = threading.Lock()
"""Tasks of one run count from threads of their own, and a meter can be made but once."""


def meters() -> Meters:
    """This process's counts. The first call decides where they live: after `serve`, or after
    the worker that started this process called it."""
    with FIRST:
        return _meters()


@cache
def _meters() -> Meters:
    from prometheus_client import Counter, Histogram

    folder = os.environ.get(FILES)
    if folder:
        values: Any = import_module("prometheus_client.values")
        values.ValueClass = values.MultiProcessValue(process_identifier=Slot(Path(folder)))

    target = ("gpu", "precision", "toolchain")
    return Meters(
        builds=Counter(
            "enginefarm_builds",
            "Builds that ended; `outcome` is built, or the kind of the error.",
            (*target, "outcome"),
        ),
        build_seconds=Histogram(
            "enginefarm_build_seconds",
            "Wall clock of builds that came to a plan.",
            target,
            buckets=BUILD_SECONDS,
        ),
        cached=Counter(
            "enginefarm_cached_engines", "Engines that were in the store already.", ("recipe",)
        ),
        stages=Counter(
            "enginefarm_stages", "Stages, by whether the store had them.", ("stage", "result")
        ),
        transferred=Counter(
            "enginefarm_transferred_bytes", "Bytes to and from the store.", ("direction",)
        ),
    )


@contextmanager
def building(spec: BuildSpec) -> Generator[None]:
    """Counts one build, and times it when it comes to a plan."""
    target = (spec.gpu.label, spec.precision.name, spec.toolchain.name)
    started = time.monotonic()
    try:
        yield
    except EnginefarmError as error:
        meters().builds.labels(*target, type(error).__name__).inc()
        raise
    except Exception:
        meters().builds.labels(*target, "unexpected").inc()
        raise
    meters().builds.labels(*target, "built").inc()
    meters().build_seconds.labels(*target).observe(time.monotonic() - started)


def cached(recipe: str, count: int) -> None:
    meters().cached.labels(recipe).inc(count)


def stage(name: str, *, hit: bool) -> None:
    meters().stages.labels(name, "cached" if hit else "ran").inc()


@contextmanager
def transfers() -> Generator[None]:
    """Counts the bytes of uploads and downloads inside, in addition to those who watch progress."""
    token = SINK.set(_counting(SINK.get()))
    try:
        yield
    finally:
        SINK.reset(token)


def _counting(watcher: Progress) -> Progress:
    lock = threading.Lock()
    seen: dict[tuple[str, str], float] = {}

    def counted(step: str, done: float, total: float | None, note: str = "") -> None:
        if step in ("upload", "download"):
            with lock:
                before = seen.get((step, note), 0.0)
                seen[step, note] = done
            # Less than before: the same file again, or another of that name.
            moved = done - before if done >= before else done
            meters().transferred.labels(step).inc(moved)
        watcher(step, done, total, note)

    return counted


class MetricsServer(NamedTuple):
    port: int
    close: Callable[[], None]


def serve(
    folder: Path,
    *,
    worker: str,
    gpu: str = "",
    host: str = "127.0.0.1",
    port: int = 9464,
    queue: QueueDepth | None = None,
    alive: Callable[[], bool] = lambda: True,
) -> MetricsServer:
    """Serves /metrics and /healthz from a thread, and makes `folder` the home of all counts.

    The folder is emptied: counters start at 0 with their worker, as Prometheus expects.
    port: 0 for a free one. alive: whether /healthz says 200 or 503.
    Raises: FarmError when the port is taken.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ[FILES] = str(folder)

    from prometheus_client import CollectorRegistry, Info
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    if queue is not None:
        registry.register(_Queue(queue))
    about = {"worker": worker, "gpu": gpu, "version": __version__}
    Info("enginefarm_worker", "This worker.", registry=registry).info(about)
    exposition: Any = import_module("prometheus_client.exposition")
    metrics = exposition.make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start_response)
        well = environ["PATH_INFO"] == "/healthz" and alive()
        unknown = environ["PATH_INFO"] != "/healthz"
        status = "404 Not Found" if unknown else "200 OK" if well else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [status.encode()]

    try:
        server = make_server(
            host,
            port,
            app,
            server_class=exposition.ThreadingWSGIServer,
            handler_class=_Quiet,
        )
    except OSError as error:
        raise FarmError(
            f"metrics: cannot listen on {host}:{port}",
            why=error.strerror or "",
            fix="set ENGINEFARM_METRICS_PORT to a free port, or to 0",
        ) from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def close() -> None:
        server.shutdown()
        server.server_close()
        if os.environ.get(FILES) == str(folder):
            del os.environ[FILES]

    return MetricsServer(server.server_port, close)


class _Quiet(WSGIRequestHandler):
    """A scrape every few seconds is not worth a line."""

    def log_message(self, format: str, *args: Any) -> None:
        return


class _Queue:
    """Asks for the queue at each scrape. When that fails, the scrape has no queue in it."""

    def __init__(self, depth: QueueDepth) -> None:
        self._depth = depth

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(
            "enginefarm_queue_runs", "Runs of a work pool.", labels=("pool", "state")
        )
        try:
            found = self._depth()
        except Exception:  # whatever Prefect's client raises: metrics must not end a worker
            return
        for (pool, state), count in sorted(found.items()):
            family.add_metric((pool, state), count)
        yield family
