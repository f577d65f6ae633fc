"""`enginefarm up`, then what a person does with it: submit, a mistake, the log, Ctrl-C."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from enginefarm.store import embedded
from enginefarm.store.embedded import Server
from enginefarm.store.weed import free_ports
from tests import tiny_recipe
from tests.farm.farm_fixture import COMMAND, PATIENCE_S, until
from tests.processes import alive


class Up:
    """The command, and the folder where somebody has started it."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.said = folder / "said"
        self.environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("PREFECT_")},
            "ENGINEFARM_HOME": str(folder / "home"),
            "ENGINEFARM_CACHE": str(folder / "cache"),
            "ENGINEFARM_STORE": f"s3://{embedded.BUCKET}/{secrets.token_hex(4)}",
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": server.credentials.secret_key,
            "PYTHONUNBUFFERED": "1",
        }
        self.recipes = folder / "recipes"
        for name in ("right", "other"):
            tiny_recipe.write(
                self.recipes / name, name=name, salt=name, gpus=["t4"], precisions=["fp16"]
            )
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [*COMMAND, "up", "--port", str(*free_ports(1)), "--recipes", self.recipes.name],
                env=self.environment,
                cwd=folder,
                stdout=said,
                stderr=said,
            )

    def told(self, text: str) -> bool:
        assert self.process.poll() is None, self.said.read_text()
        return text in self.said.read_text()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment,
            cwd=self.recipes,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, s3_server: Server) -> Iterator[Up]:
    made = Up(tmp_path_factory.mktemp("up"), s3_server)
    try:
        until(lambda: made.told("enginefarm submit"), "it is up", said=made.said.read_text)
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def test_a_recipe_is_submitted_followed_and_its_engines_are_told(up: Up) -> None:
    """Nothing is exported: the commands find the farm by themselves."""
    ended = up.command("submit", "right")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "/runs/flow-run/" in ended.stdout.splitlines()[0]
    assert "right · t4: Completed" in ended.stdout
    assert "right t4/fp16: Built" in ended.stdout
    assert "Engines of right" in ended.stdout
    assert "built" in ended.stdout.splitlines()[-2]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("missing",), 10, "error: recipe: there is no file missing"),
        (("../../etc",), 10, "outside the folders"),
        (("right", "--gpu", "gtx480"), 11, "'gtx480'"),
        (("right", "--precision", "fp64"), 10, "'fp64'"),
    ],
)
def test_a_mistake_is_told_reason_first(
    up: Up, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ended = up.command("submit", *arguments)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_ends_whole(up: Up) -> None:
    parts = psutil.Process(up.process.pid).children(recursive=True)
    assert parts
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0, up.said.read_text()
    assert not alive(parts)


def test_a_port_that_is_taken_is_one_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = subprocess.run(
            [*COMMAND, "up", "--port", str(taken.getsockname()[1])],
            env={**os.environ, "ENGINEFARM_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert ended.returncode == 70, ended.stderr
    assert "server ended with status" in ended.stderr
    assert "Traceback" not in ended.stderr
