"""Fixtures that several folders of tests share."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sample_manifest import make_manifest

from enginefarm.documents.manifest import Manifest
from enginefarm.host import detect as host
from enginefarm.store import embedded, s3, signing
from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore

if TYPE_CHECKING:
    from tests.farm.farm_fixture import Farm

SHARED_FARM = (
    "tests/farm/test_deployments.py",
    "tests/farm/test_docs_of_the_farm.py",
    "tests/farm/test_drain.py",
    "tests/farm/test_fairness.py",
    "tests/farm/test_farm.py",
    "tests/farm/test_farm_recovery.py",
    "tests/farm/test_server_password.py",
    "tests/browser/test_ui.py",
)
"""Files whose tests use the fixture `farm`. They run last and in one process: a farm that only
waits takes half a core."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts jobs in the background so, and commands that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: file_of(item.nodeid) in SHARED_FARM)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, in the order of collection, and with all tests of the farm as one file."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneFarm(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "the farm" if file_of(nodeid) in SHARED_FARM else file_of(nodeid)

    config.option.loadscopereorder = False
    return OneFarm(config, log)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real SeaweedFS on free loopback ports, with a key of its own. One a test process."""
    home = tmp_path_factory.mktemp("s3") / "store"
    server = embedded.start(home)
    yield server
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
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A server, a control worker, and cross workers for t4, a100 and l4. Tests share it."""
    from tests.farm import farm_fixture

    root = tmp_path_factory.mktemp("farm")
    with (
        farm_fixture.database() as url,
        farm_fixture.farm_of(root, "t4", "a100", "l4", database=url) as made,
    ):
        yield made
