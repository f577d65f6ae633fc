"""What the nightly asks of the store before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginefarm.documents.thresholds import Regression
from enginefarm.farm.night import recipe_states
from enginefarm.planning.survey import local_offers
from enginefarm.recipes import file as recipe_file
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site
from enginefarm.tables import rules
from tests import tiny_recipe


def listings(site: Site, files: list[Path]) -> int:
    asked: list[str] = []

    def note(request: Any, **_: Any) -> None:
        asked.append(request.url)

    events = site.store.objects.client.meta.events
    events.register("before-send.s3", note)
    assert not [row.error for row in recipe_states(site, files, local_offers()) if row.error]
    events.unregister("before-send.s3", note)
    return sum("list-type=2" in url for url in asked)


def test_it_lists_once_however_many_recipes_there_are(store: EngineStore, tmp_path: Path) -> None:
    site = Site(store=store, cache=BlobCache(tmp_path / "cache"))
    files = [
        tiny_recipe.write(tmp_path / name, name=name, gpus=["t4"], precisions=["fp16"])
        for name in ("one", "two", "three")
    ]
    assert listings(site, files[:1]) == listings(site, files)


def test_a_rule_that_became_the_default_again_is_written(
    store: EngineStore, tmp_path: Path
) -> None:
    site = Site(store=store, cache=BlobCache(tmp_path / "cache"))
    file = tiny_recipe.write(tmp_path, gpus=["t4"], precisions=["fp16"])
    recipe = recipe_file.load(file)
    strict = Regression(latency_ratio=1.02)
    rules.remember(store, recipe.model_copy(update={"regression": strict}))
    assert rules.recorded(store, "tiny") == strict
    recipe_states(site, [file], local_offers())
    assert rules.recorded(store, "tiny") == recipe.regression != strict
