"""Fixtures that several folders of tests share."""

from __future__ import annotations

import fcntl
import gc
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torchlib
from hypothesis import HealthCheck, settings
from sample_manifest import make_manifest

from enginefarm.child import COLLECT
from enginefarm.documents.manifest import Manifest
from enginefarm.graph import work
from enginefarm.host import detect as host
from enginefarm.store import embedded, s3, signing
from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore

if TYPE_CHECKING:
    from tests.farm.farm_fixture import Farm


class SharedFarm(NamedTuple):
    """Files whose tests share a farm, by the fixture `farm`, and the GPUs that it builds for."""

    files: tuple[str, ...]
    gpus: tuple[str, ...]


FARMS = (
    SharedFarm(
        (
            "tests/farm/test_farm.py",
            "tests/farm/test_docs_of_the_farm.py",
            "tests/browser/test_ui.py",
        ),
        ("t4", "a100", "l4"),
    ),
    SharedFarm(("tests/farm/test_farm_recovery.py", "tests/farm/test_drain.py"), ("t4", "a100")),
    SharedFarm(
        (
            "tests/farm/test_deployments.py",
            "tests/farm/test_fairness.py",
            "tests/farm/test_lost_workers.py",
            "tests/farm/test_server_password.py",
        ),
        ("l4",),
    ),
)
"""About as long. They run first, each in one process, because they take longest and mostly wait:
two processes fill the time in which they do. A farm's start takes 20 s of the processor."""

LONG = (
    "tests/integration/graph/test_models.py",
    "tests/farm/test_farm_database.py",
    "tests/farm/test_docs_of_a_contributor.py",
    "tests/unit/graph/exporting/test_export.py",
    "tests/farm/test_build_model.py",
    "tests/integration/store/test_store.py",
    "tests/farm/test_forked_runs.py",
    "tests/unit/on_fake_gpu/test_refit.py",
    "tests/farm/test_up.py",
    "tests/farm/test_restore.py",
    "tests/integration/cli/test_wheel.py",
    "tests/farm/test_compose_commands.py",
    "tests/integration/planning/test_commands.py",
    "tests/farm/test_private_api.py",
    "tests/browser/test_report_page.py",
    "tests/integration/store/test_bad_network.py",
    "tests/integration/bench/test_gpu_benchmark.py",
    "tests/farm/test_newcomer.py",
    "tests/integration/store/test_same_spec.py",
    "tests/integration/tables/test_tables.py",
    "tests/unit/graph/test_work.py",
    "tests/integration/toolchains/test_rtx_builds.py",
    "tests/unit/on_fake_gpu/test_native_build.py",
    "tests/integration/release/test_gc.py",
    "tests/farm/test_secrets.py",
)
"""What comes next, about the longest first: a long file that is begun last is waited for by
processes with nothing to do."""


# As in a child of ours, where this code runs, and before any test imports torch: its threads do not
# spin while other tests need the cores, and garbage is seldom looked for.
os.environ.update(work.PATIENT)
gc.set_threshold(*COLLECT)

# A machine that runs farms beside them makes examples slowly; that says nothing of the code.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts jobs in the background so, and commands that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def number_of_farm(nodeid: str) -> int:
    """Which of FARMS a test uses; the number after the last for one that uses none."""
    found = (i for i, shared in enumerate(FARMS) if file_of(nodeid) in shared.files)
    return next(found, len(FARMS))


def turn(nodeid: str) -> tuple[int, int]:
    """By what tests are sorted: farms, long files, the others."""
    file = file_of(nodeid)
    return number_of_farm(nodeid), LONG.index(file) if file in LONG else len(LONG)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: turn(item.nodeid))


def pytest_runtest_setup() -> None:
    torchlib.read_once()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, in the order of collection, and with the tests of a farm as one file."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Farms(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            number = number_of_farm(nodeid)
            return f"farm {number}" if number < len(FARMS) else file_of(nodeid)

    config.option.loadscopereorder = False
    return Farms(config, log)


RUNNING: dict[int, tuple[ExitStack, Farm]] = {}
"""The farm of this process by its number, and what ends it."""


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A farm that only waits takes a quarter of a core: it ends with the last test that uses it."""
    number = number_of_farm(item.nodeid)
    if number in RUNNING and (nextitem is None or number_of_farm(nextitem.nodeid) != number):
        RUNNING.pop(number)[0].close()


@pytest.fixture(scope="session")
def s3_server(session_folder: Path) -> Iterator[Server]:
    """A real SeaweedFS on free loopback ports, with a key of its own. All processes of this session
    share it, because one that waits takes the processor too; the last of them ends it."""
    home = session_folder / "s3" / "store"
    home.parent.mkdir(exist_ok=True)
    with (home.parent / "users").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield embedded.start(home)
        with suppress(BlockingIOError):  # another process uses it
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            embedded.stop(home)


@pytest.fixture
def make_store(s3_server: Server) -> Callable[[], EngineStore]:
    """Opens stores on fresh prefixes of the real server."""

    def make() -> EngineStore:
        url = f"s3://{embedded.BUCKET}/{secrets.token_hex(4)}"
        objects = s3.connect(url, endpoint=s3_server.endpoint, credentials=s3_server.credentials)
        return EngineStore(objects, url)

    return make


@pytest.fixture
def store(make_store: Callable[[], EngineStore]) -> EngineStore:
    """An empty EngineStore on the real server."""
    return make_store()


@pytest.fixture
def store_environment(
    s3_server: Server, store: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> EngineStore:
    """The same store, named in the environment as a user would; the cache is fresh too."""
    monkeypatch.setenv("ENGINEFARM_STORE", store.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.credentials.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.credentials.secret_key)
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path / "cache"))
    return store


@pytest.fixture
def publish(store_environment: EngineStore) -> Callable[..., Manifest]:
    """Puts an engine of the given bytes into the store that the environment names."""

    def put(engine: bytes = b"engine", **changes: Any) -> Manifest:
        manifest = make_manifest(engine=engine, **changes)
        store_environment.put_bytes(engine)
        store_environment.put_bytes(b"graph")
        assert store_environment.publish(manifest, signing.signer())
        return manifest

    return put


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these the only distributions there are: installed(onnxruntime_gpu="1.31.1")."""

    def only(**versions: str) -> None:
        def version(name: str) -> str:
            if name.replace("-", "_") not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name.replace("-", "_")]

        monkeypatch.setattr(metadata, "version", version)

    return only


@pytest.fixture
def no_gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine as one without a GPU, whatever it has."""
    monkeypatch.setattr(host, "first_gpu", lambda: None)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for every process of this session: what one of them makes, all may use."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@pytest.fixture(scope="module")
def farm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, session_folder: Path
) -> Farm:
    """A server, a control worker, and cross workers for its GPUs. Files of FARMS share it."""
    from tests.farm import farm_fixture

    number = number_of_farm(request.node.nodeid)
    if number not in RUNNING:
        with ExitStack() as stack:
            url = stack.enter_context(farm_fixture.database(session_folder))
            root, gpus = tmp_path_factory.mktemp("farm"), FARMS[number].gpus
            made = stack.enter_context(farm_fixture.farm_of(root, *gpus, database=url))
            RUNNING[number] = stack.pop_all(), made
    return RUNNING[number][1]
