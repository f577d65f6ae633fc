"""The pages about adding a GPU, a precision or a toolchain, followed in a checkout of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_recipe
from tests.docs_pages import Reader
from tests.farm import farm_fixture
from tests.farm.farm_fixture import CHECKOUT, Farm


@pytest.fixture(scope="module")
def contributor(tmp_path_factory: pytest.TempPathFactory, session_folder: Path) -> Iterator[Reader]:
    """One who has a checkout of their own, and a farm that runs it."""
    root = tmp_path_factory.mktemp("contributor")
    checkout = root / "recipes"  # they work in it, and their recipes lie there
    with farm_fixture.database(session_folder) as url:
        farm = Farm(root, database=url, checkout=checkout)
        try:
            for folder in ("enginefarm", "flows", "tasks", "deployments", "docs"):
                shutil.copytree(CHECKOUT / folder, checkout / folder)
            tiny_recipe.write(
                checkout / "my-model",
                name="my-model",
                gpus=["rtx4060"],
                precisions=["fp16", "w16"],
            )
            tiny_recipe.write(
                checkout / "quick-model",
                name="quick-model",
                gpus=["rtx4060"],
                precisions=["w16"],
                toolchain="rtx-quick",
            )
            farm.start_server()
            yield Reader(farm, checkout)
        finally:
            farm.close()


def test_adding(contributor: Reader) -> None:
    """A GPU, then a precision that it has, then a toolchain that builds both for it."""
    farm = contributor.farm
    contributor.follow("adding-a-gpu.md")
    assert "rtx4060" in contributor.said("enginefarm gpus")[0]
    assert "| rtx4060 |" in (contributor.checkout / "docs" / "gpus.md").read_text("utf-8")
    with farm.client() as client:
        form = client.read_deployment_by_name("build-model/build-model").parameter_openapi_schema
    assert "rtx4060" in json.dumps(form)
    contributor.stop_workers()

    contributor.follow("adding-a-precision.md")
    built = json.loads(farm.command("list", "my-model", "--json").stdout)
    assert {(row["gpu"], row["precision"]) for row in built} == {
        ("rtx4060", "fp16"),
        ("rtx4060", "w16"),
    }

    contributor.follow("adding-a-toolchain.md")
    (quick,) = json.loads(farm.command("list", "quick-model", "--json").stdout)
    assert "rtx-quick" in json.dumps(quick)
    assert "rtx-quick" in contributor.said("enginefarm workers")[0]
