"""What Tab offers: the recipes and channels of the store, and nothing when it cannot be asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from enginefarm import cli
from enginefarm.cli import completion
from enginefarm.store import embedded
from enginefarm.store.engine_store import EngineStore


def offered(*line: str) -> list[str]:
    *words, begun = line
    complete = ShellComplete(cli.cli, {}, "enginefarm", "_ENGINEFARM_COMPLETE")
    return [item.value for item in complete.get_completions(words, begun)]


@pytest.fixture
def promoted(publish: Callable[..., Any]) -> None:
    publish(recipe="minilm")
    publish(b"other", recipe="mobilenet", salt="other")
    for channel in ("production", "candidate"):
        assert cli.run(["promote", "minilm", "--to", channel, "--allow-pending"]) == 0


@pytest.mark.usefixtures("promoted")
def test_recipes_and_channels_of_the_store_are_offered(store_environment: EngineStore) -> None:
    assert offered("pull", "") == ["minilm", "mobilenet"]
    assert offered("pull", "mi") == ["minilm"]
    assert offered("pull", "minilm@") == ["minilm@candidate", "minilm@production"]
    assert offered("verify", "minilm@p") == ["minilm@production"]
    assert offered("rollback", "minilm", "") == ["candidate", "production"]
    assert offered("channel", "minilm", "c") == ["candidate"]
    assert offered("promote", "minilm", "--from", "") == ["candidate", "production"]
    assert offered("rollback", "mobilenet", "") == []
    for command in ("list", "show", "log", "url", "run", "bom", "fleet", "cost", "triton-repo"):
        assert offered(command, "mo") == ["mobilenet"], command
    store_environment.objects.put("recipes/pushed.json", b"{}")
    assert offered("build", "@") == ["@store/pushed"]
    assert offered("recipes", "remove", "pu") == ["pushed"]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "not a URL"])
def test_without_an_answer_nothing_is_offered(
    monkeypatch: pytest.MonkeyPatch, store_environment: EngineStore, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert offered("pull", "m") == []
    monkeypatch.setenv("ENGINEFARM_STORE", "nowhere")
    assert offered("pull", "m") == []


def test_tab_starts_no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ENGINEFARM_STORE", raising=False)
    monkeypatch.setattr(embedded, "start", lambda home: pytest.fail("a server was started"))
    assert offered("pull", "m") == []
    assert completion.STORED.startswith("@")
    assert offered("build", "ex") == ["ex"]  # a file's name, which the shell completes


@pytest.mark.parametrize("command", ["worker", "build", "pull"])
def test_gpus_are_offered(command: str) -> None:
    assert "l40s" in offered(command, "--gpu", "l4")
