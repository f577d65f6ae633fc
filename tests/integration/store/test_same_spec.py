"""Thirty-two at once for one spec, on two machines (two caches): one manifest comes of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from enginefarm.building import isolate
from enginefarm.building.engine import Job
from enginefarm.host.plan_header import read_plan_header
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site
from enginefarm.toolchains import BuildRequest, tensorrt_rtx
from tests import fake_builds, tiny_recipe
from tests.fake_builds import made

REQUESTS = 32


@pytest.fixture
def job(store: EngineStore, tmp_path: Path) -> Job:
    """What a worker is told of one engine of the tiny recipe."""
    (job,) = jobs(store, tmp_path, gpus=["a100"], precisions=["fp16"])
    return job


def jobs(store: EngineStore, tmp_path: Path, **changes: Any) -> list[Job]:
    """A job for each engine of the tiny recipe, with these changes to the recipe."""
    path = tiny_recipe.write(tmp_path / "recipe", **changes)
    return fake_builds.jobs(Site(store, BlobCache(tmp_path / "control")), path)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The compute capabilities of every build that really ran, in order."""
    ran: list[tuple[str, ...]] = []
    build: Callable[..., object] = isolate.build

    def counted(request: BuildRequest, **options: object) -> object:
        ran.append(request.spec.compute_capabilities)
        return build(request, **options)

    monkeypatch.setattr(isolate, "build", counted)
    return ran


def test_it_is_built_once_a_machine_and_published_once(
    store: EngineStore, job: Job, tmp_path: Path, builds: list[tuple[str, ...]]
) -> None:
    sites = [Site(store=store, cache=BlobCache(tmp_path / f"machine{index}")) for index in (0, 1)]
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(lambda index: made(sites[index % 2], job), range(REQUESTS)))
    (published,) = store.manifests("tiny")
    assert {answer.engine for answer in answers} == {published.engine}
    assert store.has_blob(published.engine)
    assert 1 <= len(builds) <= len(sites), "the lock is a machine's"


def test_newer_gpus_share_one_build_and_one_blob_and_turing_has_its_own(
    store: EngineStore, tmp_path: Path, builds: list[tuple[str, ...]]
) -> None:
    asked = jobs(store, tmp_path, precisions=["fp16"])
    sites = [
        Site(store=store, cache=BlobCache(tmp_path / f"{job.spec.gpu.label}")) for job in asked
    ]
    manifests = [made(site, job) for site, job in zip(sites, asked, strict=True)]
    assert [one.gpu for one in manifests] == ["t4", "a100", "l4"]
    assert len(builds) == 2
    assert len({one.engine.digest for one in manifests}) == 2
    assert [one.build.built_with for one in manifests] == [None, None, "a100"]
    assert sum(one.build.seconds > 0 for one in manifests) == 2, "build minutes are counted once"
    turing = read_plan_header(sites[0].cache.path(manifests[0].engine))
    assert turing.compute_capabilities == ("7.5",)
    plan_file = sites[1].cache.path(manifests[1].engine)
    carried = read_plan_header(plan_file).compute_capabilities
    assert carried == manifests[2].build.compute_capabilities
    assert not sites[2].cache.has(manifests[2].engine), "nothing was downloaded to say so"


def test_where_one_compute_capability_fails_all_the_gpu_gets_its_own_plan(
    store: EngineStore,
    tmp_path: Path,
    builds: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensorrt_rtx, "OWN_PLAN", set())  # 7.5 has no FP32 Gemm
    (job,) = jobs(store, tmp_path, gpus=["a100"], precisions=["fp32"])
    assert "7.5" in job.spec.compute_capabilities
    site = Site(store=store, cache=BlobCache(tmp_path / "worker"))
    manifest = made(site, job)
    assert builds == [job.spec.compute_capabilities, ()]
    assert manifest.build.compute_capabilities == ()
    assert read_plan_header(site.cache.path(manifest.engine)).compute_capabilities == ("8.0",)


def test_a_second_recipe_with_the_same_spec_finds_the_engine_and_keeps_it(
    store: EngineStore, job: Job, tmp_path: Path, builds: list[tuple[str, ...]]
) -> None:
    site = Site(store=store, cache=BlobCache(tmp_path / "worker"))
    first = made(site, job)
    assert made(site, job.model_copy(update={"recipe": "twin"})) == first
    assert len(builds) == 1
    assert store.complete("twin") == store.complete("tiny") == {first.spec_digest}
    assert [one.spec_digest for one in store.manifests("twin")] == [first.spec_digest]
