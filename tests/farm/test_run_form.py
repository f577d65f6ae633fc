"""The run form offers the recipes that there are, and the GPUs that they name."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.utilities.callables import parameter_schema

from enginefarm.documents import gpus
from enginefarm.farm import run_form
from enginefarm.farm.run_form import Choices
from enginefarm.store.engine_store import EngineStore
from flows.benchmark_engine import benchmark_engine
from flows.build_model import build_model
from tests import tiny_recipe


def schema() -> dict[str, object]:
    return parameter_schema(build_model.fn).model_dump()


def test_the_recipes_of_the_roots_are_listed_with_the_gpus_that_they_name(
    store: EngineStore, tmp_path: Path
) -> None:
    tiny_recipe.write(tmp_path / "vision" / "net", gpus=["t4", "l4"])
    tiny_recipe.write(tmp_path, gpus=["a100"])
    tiny_recipe.write(tmp_path / ".hidden", gpus=["h100"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.yaml").write_text("name: [")
    found = run_form.choices(store, [tmp_path])
    assert found.recipes == ("broken", "recipe.yaml", "vision/net")
    assert set(found.gpus) == {"t4", "l4", "a100"}


def test_recipes_of_the_store_are_listed_where_it_is_a_root(
    store: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEFARM_RECIPE_ROOTS", "@store")
    monkeypatch.setattr(run_form.recipe_store, "names", lambda _: ("kept",))
    assert run_form.choices(store, []) == Choices(("@store/kept",), tuple(gpus.table()))
    monkeypatch.setenv("ENGINEFARM_RECIPE_ROOTS", str(tmp_path))
    assert run_form.choices(store, [tmp_path]).recipes == ()


def test_a_recipe_is_chosen_from_the_list_or_typed() -> None:
    made = run_form.with_choices(schema(), Choices(("net", "@store/kept"), ("t4",)))
    chosen, typed = made["properties"]["recipe"]["anyOf"]
    assert chosen["enum"] == ["net", "@store/kept"]
    assert typed["type"] == "string"
    assert "enum" not in typed
    assert made["properties"]["gpus"]["items"]["enum"] == ["t4"]
    assert made["properties"]["recipe"]["description"], "what the form says of it stays"


@pytest.mark.parametrize("count", [0, run_form.MOST + 1])
def test_without_a_list_that_helps_the_path_is_typed(count: int) -> None:
    listed = run_form.with_choices(schema(), Choices(("net",), ("t4",)))
    many = Choices(tuple(map(str, range(count))), ("t4",))
    made = run_form.with_choices(listed, many)
    assert made["properties"]["recipe"]["type"] == "string"
    assert "anyOf" not in made["properties"]["recipe"]
    assert run_form.with_choices(made, many) == made


def test_whoever_starts_a_benchmark_chooses_its_budget() -> None:
    """docs/security.md says so: the form asks for it, and it is nobody's secret or signature."""
    form = parameter_schema(benchmark_engine.fn).model_dump()
    assert "budget" in form["properties"]
    assert "budget" not in form["required"]
