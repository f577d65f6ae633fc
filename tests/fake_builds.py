"""The road from a recipe to a published engine without Prefect, whose server alone takes longer."""

from __future__ import annotations

from pathlib import Path

from enginefarm.building import engine as engines
from enginefarm.building.engine import BuildResult, Job
from enginefarm.documents.manifest import Manifest
from enginefarm.planning import graphs, plan, stages
from enginefarm.planning.survey import local_offers
from enginefarm.recipes import file as recipe_file
from enginefarm.store.site import Site


def jobs(site: Site, path: Path) -> list[Job]:
    """The control worker's part: a job for each engine of the recipe."""
    recipe = recipe_file.load(path)
    exported = stages.export(site, recipe)
    slimmed = stages.slim(site, recipe, exported)
    reference = stages.reference(site, recipe, exported.outputs)
    prepared = {
        name: graphs.prepare(site, recipe, slimmed.model, reference, name)
        for name in recipe.precisions
    }
    return [
        Job(
            recipe=recipe.name,
            spec=plan.resolve(recipe, target, slimmed.model, prepared[target.precision].use),
            prepared=prepared[target.precision],
        )
        for target in plan.targets(recipe, local_offers()).wanted
    ]


def made(site: Site, job: Job) -> Manifest:
    built = engines.build(site, job)
    if not isinstance(built, BuildResult):
        return built
    return engines.publish(site, job, engines.upload(site, built))
