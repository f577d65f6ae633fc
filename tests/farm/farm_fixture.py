"""A whole farm on this machine: Prefect server, S3 server, workers, each a process of its own."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from enginefarm.farm.server.environment import database_url
from enginefarm.farm.worker import card as workers
from enginefarm.store import embedded, inner_ports, s3
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.weed import free_ports
from tests.farm import postgres_server

PATIENCE_S = 480
"""The machines that run these tests may be busy with others."""

COMMAND = [sys.executable, "-P", "-c", "from enginefarm.cli import main; main()"]
SHADOWS = ("flows", "tasks", "enginefarm", "prefect", "uvicorn")
CHECKOUT = Path(__file__).resolve().parents[2]


class Farm:
    """Starts and stops parts, runs deployments, and looks."""

    def __init__(self, root: Path, *, database: str | None, checkout: Path = CHECKOUT) -> None:
        self.root = root
        self.recipes = root / "recipes"
        self.recipes.mkdir(parents=True)
        # Everything of the farm stands here: folders of our names must shadow nothing.
        for name in SHADOWS if checkout == CHECKOUT else ():
            (self.recipes / name).mkdir()
            (self.recipes / name / "__init__.py").write_text(f"raise SystemExit('{name}: yours')")
        (self.port,) = free_ports(1)
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.s3_home = root / "s3"
        self.s3 = embedded.start(self.s3_home)
        url = f"s3://{embedded.BUCKET}/{secrets.token_hex(4)}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if "PREFECT" not in name},
            "PREFECT_HOME": str(root / "prefect"),
            "ENGINEFARM_HOME": str(root / "home"),
            "ENGINEFARM_RECIPE_ROOTS": f"{self.recipes}:@store",
            # Prefect looks every minute for what schedules make due: tests would wait for that.
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            # Most workers of these farms wait, and each question costs the two cores that the
            # others build on. A worker whose run has ended asks at once, whatever this is.
            "PREFECT_WORKER_QUERY_SECONDS": "5",
            # A start of the server takes a second longer with them; only its UI makes blocks.
            "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
            # Each of Prefect's clients reads its authorities, which plain HTTP asks nothing of:
            # 18 ms of the processor for the hundred that it has by default, nothing for one.
            "PREFECT_API_SSL_CERT_FILE": str(self.s3.home / inner_ports.CERTIFICATE),
            "ENGINEFARM_STORE": url,
            "AWS_ENDPOINT_URL": self.s3.endpoint,
            "AWS_ACCESS_KEY_ID": self.s3.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.s3.credentials.secret_key,
            # What was on it stays: that is how coverage reaches the workers.
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(checkout), os.environ.get("PYTHONPATH")))
            ),
        }
        if database is not None:
            self.environment["ENGINEFARM_DATABASE_URL"] = database
        objects = s3.connect(url, endpoint=self.s3.endpoint, credentials=self.s3.credentials)
        self.store = EngineStore(objects, url)
        self._client: SyncPrefectClient | None = None

    # Parts

    def start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """A command of ours in the background; its output is `<root>/<name>.log`."""
        with (self.root / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*COMMAND, *arguments],
                env={
                    **self.environment,
                    "ENGINEFARM_CACHE": str(self.root / "caches" / name),
                    **environment,
                },
                cwd=self.recipes,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env={**self.environment, **environment},
            cwd=self.recipes,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start_server(self) -> None:
        process = self.start("server", "server", "--port", str(self.port))

        def healthy() -> bool:
            assert process.poll() is None, self.log("server")
            try:
                with urlopen(f"{self.api}/health", timeout=5) as answer:
                    return bool(answer.status == 200)
            except (URLError, OSError):
                return False

        until(healthy, "the server answers")

    def start_worker(
        self, name: str, *arguments: str, **environment: str
    ) -> subprocess.Popen[bytes]:
        """A worker, once it is online."""
        process = self.start(name, "worker", "--name", name, *arguments, **environment)

        def online() -> bool:
            assert process.poll() is None, self.log(name)
            return any(
                row.card.name == name and row.card.pid == process.pid and row.online
                for row in workers.list_workers(self.store)
            )

        until(online, f"worker {name} is online")
        return process

    def stop(self, name: str, how: int = signal.SIGTERM) -> None:
        """Signals a part, and whatever it left after a while is killed."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        family = _family(process.pid)
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if how == signal.SIGTERM:
            for member in family:
                if member.is_running():
                    member.kill()

    def close(self) -> None:
        if self._client is not None:
            self._client.__exit__(None, None, None)
        for name in [name for name in self.processes if name != "server"]:
            self.stop(name)
        self.stop("server")
        embedded.stop(self.s3_home)

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text("utf-8", "replace")[-6000:]

    # Runs

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """One client for all that a test asks: to make one takes longer than most answers."""
        if self._client is None:
            with temporary_settings(
                {PREFECT_API_URL: self.api, PREFECT_API_AUTH_STRING: self.password()}
            ):
                self._client = get_client(sync_client=True).__enter__()
        yield self._client

    def exported(self) -> dict[str, str]:
        """What other programs than ours are told: the two variables of the docs."""
        return {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": self.password()}

    def password(self) -> str:
        return (self.root / "home" / "farm" / "password").read_text().strip()

    def submit(self, deployment: str, **parameters: Any) -> UUID:
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def look(self, run_id: UUID) -> FlowRun:
        with self.client() as client:
            return client.read_flow_run(run_id)

    def wait(self, run_id: UUID, patience_s: float = PATIENCE_S) -> FlowRun:
        """The run when it has ended, and is not about to be started again."""
        found: list[FlowRun] = []

        def ended() -> bool:
            run = self.look(run_id)
            found[:] = [run]
            state = run.state
            return bool(
                state and state.is_final() and not (state.is_crashed() and run.run_count < 3)
            )

        said = lambda: f"{found}\n{self.log('control')}"  # noqa: E731
        until(ended, f"run {run_id} ends", patience_s, said, pause_s=1)
        return found[0]

    def run(self, deployment: str, **parameters: Any) -> FlowRun:
        return self.wait(self.submit(deployment, **parameters))

    def children(self, run_id: UUID) -> list[FlowRun]:
        with self.client() as client:
            return client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id])
                )
            )

    def states(self, run_id: UUID) -> list[str]:
        with self.client() as client:
            return [state.name or "" for state in client.read_flow_run_states(run_id)]

    def lines(self, run_id: UUID) -> list[str]:
        """What the server has of the log of a run."""
        with self.client() as client:
            wanted = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}}
            return [
                one["message"] for one in client.request("POST", "/logs/filter", json=wanted).json()
            ]

    def runs(self, ids: list[UUID]) -> list[FlowRun]:
        with self.client() as client:
            return client.read_flow_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)), limit=200
            )

    # Processes

    def running(self, worker: str, module: str) -> list[psutil.Process]:
        """Processes below a worker that run a module, such as a builder child."""
        process = self.processes[worker]
        return [
            member for member in _family(process.pid) if module in " ".join(command_line(member))
        ]

    def forkservers(self, worker: str) -> list[psutil.Process]:
        """The process of a worker whose children are its runs; none while it is not started."""
        return [
            one
            for one in psutil.Process(self.processes[worker].pid).children()
            if "multiprocessing.forkserver" in " ".join(command_line(one))
        ]

    def run_processes(self, worker: str) -> list[psutil.Process]:
        return [run for one in self.forkservers(worker) for run in one.children()]

    def seize(self, worker: str, module: str) -> psutil.Process:
        """The first such process, as soon as there is one."""
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = self.running(worker, module)
            return bool(found)

        until(there, f"{worker} runs {module}", pause_s=0.05)
        return found[0]


def until(
    condition: Callable[[], bool],
    what: str,
    patience_s: float = PATIENCE_S,
    said: Callable[[], str] = str,
    pause_s: float = 0.5,
) -> float:
    """Waits; gives the seconds it took. Fails with what was waited for."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > patience_s:
            raise AssertionError(f"after {patience_s:g} s still not so: {what}\n{said()}")
        time.sleep(pause_s)
    return time.monotonic() - started


@contextmanager
def farm_of(
    root: Path, *crosses: str, database: str | None = None, patient: bool = True
) -> Iterator[Farm]:
    """A farm with a control worker and a cross worker for each label.

    patient: its workers ask for runs less often than those of a user do.
    """
    farm = Farm(root, database=database)
    if not patient:
        del farm.environment["PREFECT_WORKER_QUERY_SECONDS"]
    with ExitStack() as stack:
        stack.callback(farm.close)
        farm.start_server()
        deployed = farm.command("deploy")
        assert deployed.returncode == 0, deployed.stderr
        starting = {
            "control": ("--control",),
            **{label: ("--gpu", label, "--cross") for label in crosses},
        }
        for name, arguments in starting.items():
            farm.start(name, "worker", "--name", name, *arguments)
        for name in starting:
            until(
                lambda name=name: any(
                    row.card.name == name and row.online for row in workers.list_workers(farm.store)
                ),
                f"worker {name} is online",
                said=lambda name=name: farm.log(name),
            )
        yield farm


@contextmanager
def database(session: Path | None = None) -> Iterator[str | None]:
    """PostgreSQL, as a team would have it; SQLite where it is not installed.

    session: a folder of this session's tests, where Prefect's empty tables are kept for all
    of its farms: to make them takes longer than to start the server that uses them.
    """
    if postgres_server.installed() is None:
        yield None
        return
    template = (
        None if session is None else postgres_server.made_once(session / "postgres", with_tables)
    )
    with postgres_server.running(template) as url:
        yield url


def with_tables(url: str) -> None:
    """Makes Prefect's tables in an empty database."""
    made = "import asyncio; from prefect.server.database import provide_database_interface as it;"
    with tempfile.TemporaryDirectory() as home:
        subprocess.run(
            [sys.executable, "-P", "-c", f"{made} asyncio.run(it().create_db())"],
            env={
                **{name: text for name, text in os.environ.items() if "PREFECT" not in name},
                "PREFECT_HOME": home,
                "PREFECT_API_DATABASE_CONNECTION_URL": database_url(url),
            },
            check=True,
        )


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
