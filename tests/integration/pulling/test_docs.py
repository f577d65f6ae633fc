"""Every command in a `sh` block of these pages runs, in order, as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from sample_manifest import make_manifest

from enginefarm import cli
from enginefarm.host import detect as host
from enginefarm.release import promote as release
from enginefarm.store.engine_store import EngineStore

DOCS = Path(__file__).parents[3] / "docs"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    text = (DOCS / page).read_text("utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines() if line]
    assert lines, page
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("page", ["pulling.md", "triton.md", "channels.md", "keys.md"])
def test_every_command_of_the_page_runs(
    page: str,
    store_environment: EngineStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(host, "first_gpu", lambda: None)
    monkeypatch.chdir(tmp_path)
    for label in ("t4", "a100"):
        manifest = make_manifest(label=label, engine=label.encode())
        store_environment.put_bytes(label.encode())
        store_environment.put_bytes(b"graph")
        store_environment.publish(manifest)
    release.promote(store_environment, "model", "production", allow_pending=True)
    for program, *arguments in commands(page):
        assert program == "enginefarm"
        assert cli.run(arguments) == 0, (arguments, capsys.readouterr().err)
        if arguments[0] == "keygen":
            monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", "farm.pem")
            monkeypatch.setenv("ENGINEFARM_TRUST", "farm.pub.pem")
