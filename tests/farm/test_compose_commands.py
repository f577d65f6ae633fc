"""Every service of infra/compose, run for real without containers.

The command lines, the environment, the entrypoint and the secrets are those of the Compose
file; only what a container would give is put in its place: paths, host names and ports.
PostgreSQL is this machine's own (its image's start script is not run), and GPU workers get
as far as a machine without a GPU lets them.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from enginefarm.errors import StoreDenied
from enginefarm.store import s3
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.s3 import Credentials
from enginefarm.store.weed import free_ports
from tests import grpc_probe
from tests.farm import postgres_server
from tests.farm.weed_server import OTHER_PORTS

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "infra" / "compose"
SCRIPTS = Path(sysconfig.get_path("scripts"))
DONE_S = 180

pytestmark = pytest.mark.slow


class Site:
    """What containers would see, as places on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = (COMPOSE / "compose.yaml").read_text("utf-8")
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        self.document: dict[str, Any] = yaml.safe_load(text)
        subprocess.run([COMPOSE / "secrets.sh", folder / "secrets"], check=True)
        self.prefect, self.s3, self.postgres, self.metrics = free_ports(4)
        self.s3_grpc = 0

    def service(self, name: str) -> dict[str, Any]:
        return self.document["services"][name]

    def here(self, text: str, service: str) -> str:
        for secret, row in self.document["secrets"].items():
            text = re.sub(
                rf"/run/secrets/{secret}\b",
                str(self.folder / "secrets" / Path(row["file"]).name),
                text,
            )
        home = self.folder / service
        home.mkdir(exist_ok=True)
        for before, after in (
            ("/var/lib/enginefarm", str(home)),
            ("/recipes", str(ROOT / "examples")),
            ("0.0.0.0", "127.0.0.1"),
            ("prefect-server:4200", f"127.0.0.1:{self.prefect}"),
            ("s3:8333", f"127.0.0.1:{self.s3}"),
            ("4200", str(self.prefect)),
            ("8333", str(self.s3)),
            ("9464", str(self.metrics)),
            ("5432", str(self.postgres)),
        ):
            text = text.replace(before, after)
        return text

    def command(self, name: str) -> list[str]:
        return [self.here(part, name) for part in self.service(name)["command"]]

    def environment(self, name: str) -> dict[str, str]:
        """The image's variables and the service's; nothing of this process's own."""
        given = image_environment() | self.service(name).get("environment", {})
        found = {key: self.here(value, name) for key, value in given.items()}
        if found.get("PREFECT_SERVER_DATABASE_HOST"):
            found["PREFECT_SERVER_DATABASE_HOST"] = "127.0.0.1"
        return found | {"PATH": f"{SCRIPTS}:/usr/local/bin:/usr/bin:/bin"}

    def start(self, name: str, *extra: str, **more: str) -> subprocess.Popen[bytes]:
        entrypoint = ROOT / "infra" / "images" / "entrypoint.sh"
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [entrypoint, *self.command(name), *extra],
                env=self.environment(name) | more,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def healthy(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """By the service's own health check, which has to be a command that works."""
        check = self.service(name).get("healthcheck", image_healthcheck())["test"][1:]
        command = [self.here(part, name) for part in check]
        deadline = 120
        for _ in range(deadline * 2):
            assert process.poll() is None, self.log(name).read_text()[-4000:]
            if subprocess.run(command, env=self.environment(name), timeout=20).returncode == 0:
                return
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError(f"{name} never got well:\n{self.log(name).read_text()[-4000:]}")


def image_environment() -> dict[str, str]:
    text = (ROOT / "infra" / "images" / "control.Dockerfile").read_text("utf-8")
    final = text[text.rindex("\nENV PATH") : text.rindex("USER ")]
    return dict(re.findall(r"\b([A-Z][A-Z_]+)=(\S+)", final.replace("ENV PATH", "ENV ")))


def image_healthcheck() -> dict[str, Any]:
    text = (ROOT / "infra" / "images" / "control.Dockerfile").read_text("utf-8")
    return {"test": ["CMD", *json.loads(re.search(r"CMD (\[\"python.*\])", text)[1])]}


@contextmanager
def ended(process: subprocess.Popen[bytes], *, kill: bool = False) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill() if kill else process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def search() -> str:
    """Debian keeps the server's programs off the path."""
    return f"{postgres_server.installed()}:{os.environ['PATH']}"


def program(name: str) -> str:
    return shutil.which(name, path=search()) or name


@contextmanager
def postgres(site: Site) -> Iterator[None]:
    """As the image does: initdb with the password from the file, then the service's command."""
    if postgres_server.installed() is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed, and CI has to run this")
        pytest.skip("PostgreSQL is not installed")
    service = site.service("postgres")
    user = service["environment"]["POSTGRES_USER"]
    folder = Path(tempfile.mkdtemp(prefix="enginefarm-pg"))
    password = folder / "password"
    shutil.copy(site.here(service["environment"]["POSTGRES_PASSWORD_FILE"], "postgres"), password)
    as_other: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        as_other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        for path in (folder, password):
            os.chown(path, 65534, 65534)
    initdb = [program("initdb"), "-D", folder / "data", "-U", user, "--auth=scram-sha-256"]
    subprocess.run(
        [*as_other, *initdb, f"--pwfile={password}"], check=True, capture_output=True, cwd=folder
    )
    server = subprocess.Popen(
        [
            *as_other,
            program(service["command"][0]),
            *service["command"][1:],
            *("-D", folder / "data", "-p", str(site.postgres), "-k", folder),
            *("-c", "listen_addresses=127.0.0.1"),
        ],
        cwd=folder,
        stdout=site.log("postgres").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        environment = {
            "PATH": search(),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(site.postgres),
            "PGUSER": user,
            "PGPASSWORD": password.read_text(),
        }
        name, *arguments = service["healthcheck"]["test"][1:]
        check = [program(name), *arguments]
        for _ in range(100):
            done = subprocess.run(check, env=environment, capture_output=True)
            if done.returncode == 0:
                break
            assert server.poll() is None, site.log("postgres").read_text()
            try:
                server.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        subprocess.run(
            [program("createdb"), service["environment"]["POSTGRES_DB"]],
            env=environment,
            check=True,
        )
        yield
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """PostgreSQL, Prefect server and S3 server up, and `setup` run to its end."""
    site = Site(tmp_path_factory.mktemp("compose"))
    with ExitStack() as stack:
        (site.folder / "s3" / "s3").mkdir(parents=True)
        moved = [
            f"-{port}={number}"
            for port, number in zip(OTHER_PORTS, free_ports(len(OTHER_PORTS)), strict=True)
        ]
        site.s3_grpc = int(moved[-1].partition("=")[2])
        server = site.start("s3", *moved)
        stack.enter_context(ended(server, kill=True))
        stack.enter_context(postgres(site))
        prefect = site.start("prefect-server")
        stack.enter_context(ended(prefect))
        site.healthy("s3", server)
        site.healthy("prefect-server", prefect)
        setup = site.start("setup")
        assert setup.wait(DONE_S) == 0, site.log("setup").read_text()[-4000:]
        yield site


def test_setup_can_be_run_again(site: Site) -> None:
    again = site.start("setup")
    assert again.wait(DONE_S) == 0, site.log("setup").read_text()[-4000:]
    assert "build-model" in site.log("setup").read_text()


def test_the_server_asks_for_its_password(site: Site) -> None:
    with pytest.raises(OSError, match="401"):
        urlopen(f"http://127.0.0.1:{site.prefect}/api/admin/version", timeout=10)


def test_prefect_keeps_its_state_in_postgresql(site: Site) -> None:
    done = subprocess.run(
        [
            *(
                program("psql"),
                "-h127.0.0.1",
                f"-p{site.postgres}",
                "-Uprefect",
                "-dprefect",
                "-At",
            ),
            *("-c", "select count(*) from deployment"),
        ],
        env={
            "PATH": search(),
            "PGPASSWORD": (site.folder / "secrets" / "db_password").read_text(),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 0


def test_the_control_worker_comes_up_and_stops_when_told(site: Site) -> None:
    worker = site.start("control", PREFECT_LOGGING_LEVEL="DEBUG")  # idle, it logs nothing else
    with ended(worker):
        site.healthy("control", worker)
        with urlopen(f"http://127.0.0.1:{site.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert 'worker="control"' in text
        assert 'enginefarm_queue_runs{pool="gpu-t4",state="open"} 0.0' in text
        worker.terminate()
        worker.wait(60)
    assert worker.returncode == 0
    lines = site.log("control").read_text().splitlines()
    logged = [json.loads(line) for line in lines if not line.startswith("control: ")]
    assert logged
    assert {line["level"] for line in logged} <= {"debug", "info"}


@pytest.mark.parametrize("label", ["t4", "l4", "a100"])
def test_a_gpu_worker_says_that_there_is_no_gpu(site: Site, label: str) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    worker = site.start(f"worker-{label}")
    assert worker.wait(DONE_S) == 60, site.log(f"worker-{label}").read_text()[-3000:]
    assert "error: " in site.log(f"worker-{label}").read_text()


def store_by(site: Site, key: str) -> EngineStore:
    """The farm's bucket, opened with one of the keys that secrets.sh made."""
    url = "s3://enginefarm"
    found = configparser.ConfigParser()
    found.read(site.folder / "secrets" / key)
    section = found["default"]
    credentials = Credentials(section["aws_access_key_id"], section["aws_secret_access_key"])
    endpoint = f"http://127.0.0.1:{site.s3}"
    return EngineStore(s3.connect(url, endpoint=endpoint, credentials=credentials), url)


@pytest.mark.parametrize(
    ("key", "may_write", "may_not"),
    [
        ("store_key", "channels/m/candidate/1.json", "channels/m/production/1.json"),
        ("store_key", "manifests/m.json", "recipes/m.json"),
        ("store_promote_key", "channels/m/production/1.json", "manifests/m.json"),
        ("store_recipes_key", "recipes/m.json", "channels/m/production/1.json"),
        ("store_read_key", None, "fleet/m.json"),
        ("store_collect_key", None, "channels/m/production/1.json"),
    ],
)
def test_a_key_does_its_own_work_and_no_other(
    site: Site, key: str, may_write: str | None, may_not: str
) -> None:
    store = store_by(site, key)
    assert list(store.index()) == []
    if may_write is not None:
        store.objects.put(may_write, b"{}")
    with pytest.raises(StoreDenied):
        store.objects.put(may_not, b"{}")


def test_no_other_container_makes_keys_by_the_s3_servers_grpc_port(site: Site) -> None:
    folder = site.folder / "s3" / "s3"
    assert not grpc_probe.answers(site.s3_grpc, None)
    assert not grpc_probe.answers(site.s3_grpc, grpc_probe.with_certificate(None))
    assert grpc_probe.answers(site.s3_grpc, grpc_probe.with_certificate(folder))


def test_the_farms_own_key_cannot_touch_other_buckets(site: Site) -> None:
    done = subprocess.run(
        ["python", "-P", "-m", "enginefarm.store.create"],
        env=site.environment("control") | {"ENGINEFARM_STORE": "s3://another"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 42, done.stdout + done.stderr
