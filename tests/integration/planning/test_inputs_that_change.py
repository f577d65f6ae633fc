"""A recipe's files that change while a step runs: the step fails, and nothing of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import SourceError
from enginefarm.planning import graphs, stages
from enginefarm.planning.stages import Site
from enginefarm.recipes import file as recipe_file
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from tests import tiny_recipe


@pytest.fixture
def site(store: EngineStore, tmp_path: Path) -> Site:
    return Site(store=store, cache=BlobCache(tmp_path / "cache"))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_file.load(tiny_recipe.write(tmp_path / "recipe", precisions=["int8"]))


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """Does something when the work of a step is done and its result is not recorded yet."""

    def patch(step: str, action: Callable[[], object]) -> None:
        work: Callable[..., Any] = stages.in_child

        def then(name: str, *arguments: Any, **options: Any) -> Any:
            made = work(name, *arguments, **options)
            if name == step:
                action()
            return made

        monkeypatch.setattr(stages, "in_child", then)

    return patch


def other_model(recipe: Recipe) -> None:
    path = recipe.root / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\x7a\x00")  # one more, empty, field


def other_data(recipe: Recipe) -> None:
    images = np.zeros((64, 3, tiny_recipe.SIZE, tiny_recipe.SIZE), np.float32)
    np.savez(recipe.root / "data.npz", images=images)


def kept(site: Site) -> set[str]:
    return {info.key.split("/")[1] for info in site.store.objects.list("stages/")}


def test_a_model_that_changes_during_its_export(
    site: Site, recipe: Recipe, after: Callable[..., None]
) -> None:
    after("export", lambda: other_model(recipe))
    with pytest.raises(SourceError, match="changed while the step ran"):
        stages.export(site, recipe)
    assert kept(site) == set()


def test_data_that_changes_during_the_steps_that_read_it(
    site: Site, recipe: Recipe, after: Callable[..., None]
) -> None:
    exported = stages.export(site, recipe)
    slimmed = stages.slim(site, recipe, exported)
    reference = stages.reference(site, recipe, exported.outputs)
    before = kept(site)
    after("convert", lambda: other_data(recipe))
    with pytest.raises(SourceError, match="changed while the step ran"):
        graphs.prepare(site, recipe, slimmed.model, reference, "int8")
    assert kept(site) == before
