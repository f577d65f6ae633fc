"""Runs a worker: checks its GPU and toolchains, registers it, then takes runs.

It has its own temporary folder, and serves its Prometheus metrics, its health, and the length
of the queues.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.settings import get_current_settings

from enginefarm.errors import FarmError
from enginefarm.farm import recovery
from enginefarm.farm.server import connection as farm
from enginefarm.farm.server import deployments
from enginefarm.farm.worker import card as workers
from enginefarm.farm.worker import metrics, run_process
from enginefarm.farm.worker.card import CONTROL_POOL, Card, Role
from enginefarm.farm.worker.farm_worker import FarmWorker, work
from enginefarm.planning.plan import CROSS_POOL
from enginefarm.settings import current, shown_gpu
from enginefarm.store import open_store
from enginefarm.store.cache import BlobCache

EVENT_EVERY_S = 30.0


def serve(*, role: Role, label: str | None, name: str, limit: int) -> None:
    """Runs until SIGINT or SIGTERM, which differ as `work` says.

    Raises: what workers.check_device and check_toolchains raise; StoreError; FarmError
    when the server is away or too old, or the GPU has a worker already.
    """
    gpu_name, driver = workers.check_device(label, cross=role == "cross") if label else (None, None)
    pool = farm.pool_of(label) if label else CROSS_POOL if role == "cpu" else CONTROL_POOL
    card = Card(
        name=name,
        role=role,
        pool=pool,
        gpu=label,
        gpu_name=gpu_name,
        driver=driver,
        toolchains=workers.check_toolchains(role),
        host=platform.node(),
        pid=os.getpid(),
        started_at=datetime.now(UTC),
    )
    store = open_store()
    store.require_bucket()
    with farm.connected() as client:
        if not farm.asks_for_csrf_tokens(client):  # runs need not ask either
            os.environ.setdefault("PREFECT_CLIENT_CSRF_SUPPORT_ENABLED", "false")
        if role == "control":
            farm.ensure_pool(client, pool)
        else:
            deployments.ensure_applied(client, "build-engine", pool)
    # Runs for a benchmark need the GPU itself: only who has it listens to their queue.
    queues = None if role in ("gpu", "control") else ["default"]
    worker = FarmWorker(pool, queues, name=name, limit=limit)
    # Once a farm: whoever plans also looks for what was lost.
    watching = recovery.watching() if role == "control" else nullcontext()
    with (
        private_tmpdir(),
        _exclusive_gpu(role),
        workers.registered(store, card),
        _heartbeat_events(card),
        metrics_served(worker, card),
        watching,
    ):
        run_process.prepare()
        print(f"{name}: pool {pool}, {limit} at a time; {_describe(card)}", flush=True)
        asyncio.run(work(worker))


def _describe(card: Card) -> str:
    tools = ", ".join(f"{tool.name} {tool.build}" for tool in card.toolchains)
    device = f"{card.gpu_name}, driver {card.driver}" if card.gpu_name else "no GPU"
    return f"{device}; {tools}" if tools else device


@contextmanager
def _exclusive_gpu(role: Role) -> Generator[None]:
    """Allows one worker for each GPU. The kernel releases the lock when this process ends.

    It is not the lock of `building.build_locks`, which the builds of this worker hold in turn.
    """
    if role != "gpu":
        yield
        return
    folder = BlobCache().root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    visible = shown_gpu()
    lock = FileLock(folder / f"worker-gpu-{visible}")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        raise FarmError(
            f"worker: GPU {visible} of this machine already has a worker",
            why="two jobs on one GPU would spoil each other's timings",
            fix="choose another with CUDA_VISIBLE_DEVICES, or stop the first",
        ) from None
    with held:
        yield


@contextmanager
def _heartbeat_events(card: Card) -> Generator[None]:
    """Sends the heartbeat events that the automation `worker silent` watches."""
    stopped = threading.Event()
    resource = {
        "prefect.resource.id": f"enginefarm.worker.{card.pool}.{card.name}",
        "prefect.resource.name": card.name,
    }

    def beat() -> None:
        while True:
            emit_event("enginefarm.worker.heartbeat", resource=resource)
            if stopped.wait(EVENT_EVERY_S):
                return

    thread = threading.Thread(target=beat, name="worker-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        emit_event("enginefarm.worker.stopped", resource=resource)


QUEUE_STATES = {"scheduled": "SCHEDULED", "pending": "PENDING", "running": "RUNNING"}


@contextmanager
def metrics_served(worker: FarmWorker, card: Card) -> Generator[None]:
    """Serves metrics and health while the block runs, if ENGINEFARM_METRICS_PORT is set.

    Only the control worker reports the queues, so each farm reports them once, also for pools
    whose workers are scaled to zero.
    """
    port = os.environ.get("ENGINEFARM_METRICS_PORT")
    if not port:
        yield
        return
    seconds = get_current_settings().worker.query_seconds
    served = metrics.serve(
        current().home / "metrics" / card.name,
        worker=card.name,
        gpu=card.gpu or "",
        host=os.environ.get("ENGINEFARM_METRICS_HOST", "127.0.0.1"),
        port=int(port),
        queue=queue_depth if card.role == "control" else None,
        alive=lambda: worker.is_worker_still_polling(seconds),
    )
    try:
        yield
    finally:
        served.close()


def queue_depth() -> Mapping[tuple[str, str], int]:
    """Runs of each pool that are due, pending or running; `open` is all three."""
    found: dict[tuple[str, str], int] = {}
    with get_client(sync_client=True) as client:
        for pool in (CONTROL_POOL, CROSS_POOL, *farm.gpu_pools(client)):
            for state, name in QUEUE_STATES.items():
                runs: dict[str, object] = {"state": {"type": {"any_": [name]}}}
                if state == "scheduled":  # later runs of a schedule do not wait
                    runs["expected_start_time"] = {"before_": datetime.now(UTC).isoformat()}
                body = {"flow_runs": runs, "work_pools": {"name": {"any_": [pool]}}}
                answer = client.request("POST", "/flow_runs/count", json=body)
                found[pool, state] = int(answer.json())
            found[pool, "open"] = sum(found[pool, state] for state in QUEUE_STATES)
    return found


TMP_PREFIX = "enginefarm-worker-"


@contextmanager
def private_tmpdir() -> Generator[Path]:
    """Sets TMPDIR to a folder of this process, also for its children, while the block runs.

    Folders that killed workers left behind are removed first.
    """
    before, base = os.environ.get("TMPDIR"), Path(tempfile.gettempdir())
    for left in base.glob(f"{TMP_PREFIX}*"):
        if _owner_is_gone(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{TMP_PREFIX}{os.getpid()}-", dir=base))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _owner_is_gone(folder: Path) -> bool:
    named = re.match(rf"{TMP_PREFIX}(\d+)-", folder.name)
    try:
        if named is None or folder.lstat().st_uid != os.getuid():
            return False
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
