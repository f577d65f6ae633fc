"""The road from a job to a published engine, for tests whose builder is a fake."""

from __future__ import annotations

from enginefarm.building import engine as engines
from enginefarm.building.engine import BuildResult, Job
from enginefarm.documents.manifest import Manifest
from enginefarm.store.site import Site


def made(site: Site, job: Job) -> Manifest:
    built = engines.build(site, job)
    if not isinstance(built, BuildResult):
        return built
    return engines.publish(site, job, engines.upload(site, built))
