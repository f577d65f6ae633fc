"""A site, a job and a builder that is a fake, for tests of what the store is left with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sample_manifest import make_manifest, make_spec

from enginefarm.building import native
from enginefarm.building.engine import Job
from enginefarm.documents.spec import OnnxRef
from enginefarm.planning.graphs import PreparedGraph
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site
from enginefarm.toolchains import BuildOutput, BuildRequest


@pytest.fixture
def site(store_environment: EngineStore, tmp_path: Path) -> Site:
    return Site(store=store_environment, cache=BlobCache(tmp_path / "cache"))


@pytest.fixture
def job(site: Site) -> Job:
    """What a worker is told of one engine; its graph and reference are in the store."""
    manifest = make_manifest()
    reference = site.store.put_bytes(b"reference")
    return Job(
        recipe="model",
        spec=make_spec(),
        prepared=PreparedGraph(
            use=manifest.spec.precision,
            graph=OnnxRef(model=site.store.put_bytes(b"graph"), opset=20),
            reference=reference,
            verification=manifest.verification,
            details={},
            seconds=0,
            cached=False,
        ),
    )


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Plans that were really built, in order; what to build next is put in by `plans`."""
    made: list[bytes] = []

    def build(store: EngineStore, request: BuildRequest, **_: Any) -> BuildOutput:
        plan = request.work_dir / "engine.plan"
        plan.write_bytes(b"plan %d" % len(made))
        made.append(plan.read_bytes())
        return BuildOutput(
            plan=plan, tensors=make_manifest().tensors, seconds=1, peak_memory_bytes=1
        )

    monkeypatch.setattr(native, "build", build)
    return made
