"""Prefect's database is lost: engines, channels and tables come from the store alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from enginefarm.farm.worker import metrics
from enginefarm.store.engine_store import EngineStore
from tests import tiny_recipe


class Farm:
    """The command line on a Prefect home and a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = tiny_recipe.write(folder / "recipe", gpus=["t4"], precisions=["fp16"])

    def run(self, *arguments: str) -> Any:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from enginefarm.cli import main; main()"),
                *(*arguments, "--json"),
            ],
            env=environment
            | {
                "PREFECT_HOME": str(self.folder / "prefect"),
                "ENGINEFARM_HOME": str(self.folder / "home"),
                "ENGINEFARM_CACHE": str(self.folder / "cache"),
                metrics.FILES: str(self.folder / "metrics"),
            },
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    def seen(self) -> dict[str, Any]:
        return {
            "engines": self.run("list"),
            "channel": self.run("channel", "tiny"),
            "tables": self.run("bench", "table"),
        }

    def counted(self) -> dict[str, float]:
        """What a worker would serve of its runs: `name{labels}` -> value."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self.folder / "metrics"))
        lines = generate_latest(registry).decode().splitlines()
        rows = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in rows}

    def lose_everything_but_the_store(self) -> None:
        for name in ("prefect", "home", "cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


@pytest.fixture
def farm(tmp_path: Path, store_environment: EngineStore) -> Farm:
    (tmp_path / "metrics").mkdir()
    return Farm(tmp_path)


def test_the_store_alone_is_enough(farm: Farm) -> None:
    (built,) = farm.run("build", str(farm.recipe))
    assert built["status"] == "built"
    farm.run("promote", "tiny", "--to", "candidate", "--allow-pending", "--why", "first")
    before = farm.seen()
    assert len(before["engines"]) == 1

    farm.lose_everything_but_the_store()

    assert farm.seen() == before
    (again,) = farm.run("build", str(farm.recipe))
    assert again["status"] == "cached"
    assert again["spec_digest"] == built["spec_digest"]
    assert farm.seen() == before, "a build of nothing changes nothing"
    counted = farm.counted()
    built_once = [name for name in counted if "builds_total" in name]
    assert ['outcome="built"' in name for name in built_once] == [True]
    assert counted[built_once[0]] == 1
    assert counted['enginefarm_stages_total{result="ran",stage="prepare"}'] == 1
    assert counted['enginefarm_transferred_bytes_total{direction="upload"}'] > 10_000
