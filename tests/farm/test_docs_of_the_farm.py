"""The pages about triggering, scheduling and workers: every command in them, in order, as written,
on a real farm."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests import tiny_recipe
from tests.docs_pages import Reader, patched
from tests.farm.farm_fixture import Farm


@pytest.fixture(scope="module")
def reader(farm: Farm) -> Iterator[Reader]:
    """One who has the recipe my-model, and leaves the farm that tests share as it was."""
    tiny_recipe.write(
        farm.recipes / "my-model",
        name="my-model",
        salt="docs",
        gpus=["t4", "a100"],
        precisions=["fp16"],
    )
    made = Reader(farm)
    yield made
    made.stop_workers()
    farm.command("recipes", "remove", "my-model")


def test_triggering(reader: Reader, farm: Farm) -> None:
    reader.follow("triggering.md")
    built = {one.spec.label for one in farm.store.manifests("my-model")}
    assert built == {"t4/fp16", "a100/fp16"}
    first, second, stored = reader.said("prefect deployment run build-model")
    assert "'Cached'" in first  # a100, which was submitted before
    assert "'Completed'" in second  # t4, which the first left out
    assert "'Cached'" in stored


def test_scheduling(reader: Reader, farm: Farm) -> None:
    pushed = farm.command("recipes", "push", "my-model")
    assert pushed.returncode == 0, pushed.stderr
    reader.follow("scheduling.md")
    assert "30 3 * * 1-5" in reader.said("prefect deployment schedule ls")[0]
    assert all("'Cached'" in said for said in reader.said("prefect deployment run nightly"))
    with farm.client() as client:
        back = client.read_deployment_by_name("nightly-rebuild/nightly-rebuild")
    (schedule,) = back.schedules
    assert (schedule.schedule.cron, schedule.active, back.parameters) == ("0 2 * * *", True, {})


def test_workers(reader: Reader, farm: Farm) -> None:
    reader.follow("workers.md")
    started = set(reader.workers)
    assert started == {"control-2", "cross-1", "t4-stand-in"}
    assert all(name in reader.said("enginefarm workers")[0] for name in started)
    reader.stop_workers()
    left = json.loads(farm.command("workers", "--json").stdout)
    assert not started & {row["card"]["name"] for row in left}


@pytest.mark.parametrize("text", ["", "a\nb\nother\n", "a\nb\nc\na\nb\nc\n", "xa\nb\nc\n"])
def test_a_patch_that_does_not_fit_exactly_once_is_refused(text: str) -> None:
    patch = " a\n-b\n+B\n c\n"
    assert patched("1\na\nb\nc\n2\n", patch, "here") == "1\na\nB\nc\n2\n"
    with pytest.raises(AssertionError, match="found"):
        patched(text, patch, "here")
