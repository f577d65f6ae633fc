"""Thirty-two at once for one spec, on two machines (two caches): one manifest comes of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enginefarm import engines, isolate, plan, recipe_file, stages
from enginefarm.cache import BlobCache
from enginefarm.engines import Built, Job
from enginefarm.manifest import Manifest
from enginefarm.stages import Site
from enginefarm.store.engine_store import EngineStore
from enginefarm.survey import local_offers
from tests.flows import tiny_recipe

REQUESTS = 32


@pytest.fixture
def job(store: EngineStore, tmp_path: Path) -> Job:
    """What a worker is told of one engine of the tiny recipe."""
    path = tiny_recipe.write(tmp_path / "recipe", gpus=["a100"], precisions=["fp16"])
    recipe = recipe_file.load(path)
    site = Site(store=store, cache=BlobCache(tmp_path / "control"))
    exported = stages.export(site, recipe)
    slimmed = stages.slim(site, recipe, exported)
    reference = stages.reference(site, recipe, exported.outputs)
    prepared = stages.prepare(site, recipe, slimmed.model, reference, "fp16")
    (target,) = plan.targets(recipe, local_offers()).wanted
    spec = plan.resolve(recipe, target, slimmed.model, prepared.use)
    return Job(recipe=recipe.name, spec=spec, prepared=prepared)


def test_it_is_built_once_a_machine_and_published_once(
    store: EngineStore, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[str] = []
    build: Callable[..., object] = isolate.build

    def counted(request: object, **options: object) -> object:
        builds.append("one")
        return build(request, **options)

    monkeypatch.setattr(isolate, "build", counted)
    sites = [Site(store=store, cache=BlobCache(tmp_path / f"machine{index}")) for index in (0, 1)]

    def request(index: int) -> Manifest:
        site = sites[index % len(sites)]
        built = engines.build(site, job)
        if not isinstance(built, Built):
            return built
        return engines.publish(site, job, engines.upload(site, built))

    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(request, range(REQUESTS)))
    (published,) = store.manifests("tiny")
    assert {answer.engine for answer in answers} == {published.engine}
    assert store.has_blob(published.engine)
    # The lock is a machine's. Who waited for it finds the manifest, or builds once more
    # while the first is still uploading.
    assert 1 <= len(builds) <= 2 * len(sites)
