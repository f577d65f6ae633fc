"""A recipe -> its engines: the once-per-recipe stages here, then one run an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from enginefarm import engines, outcome, plan, recipe_file
from enginefarm.errors import EnginefarmError
from enginefarm.outcome import Outcome
from enginefarm.recipe import PrecisionName, Recipe
from enginefarm.stages import Prepared, Slimmed
from enginefarm.survey import Survey, local_offers
from flows.build_engine import build_engine
from tasks.model import (
    export_model,
    plan_recipe,
    prepare_precision,
    reference_outputs,
    slim_model,
)
from tasks.outcomes import EngineMissing, cached_outcomes, engine_state, publish_tables
from tasks.policy import STEP

# Threads here only wait: builds are held to the number of cores where they start.
FAN_OUT = 32


class EnginesMissing(EnginefarmError):
    """Some engines of a recipe are not there; `outcomes` has all of them."""

    def __init__(self, recipe: str, outcomes: list[Outcome]) -> None:
        missing = [row for row in outcomes if not row.fine]
        super().__init__(
            f"{recipe}: {len(missing)} of {len(outcomes)} engines are missing",
            why="\n       ".join(f"{row.label} {row.status}: {row.reason}" for row in missing),
            fix="what was finished is kept; run the same command again after the mend",
        )
        self.outcomes = outcomes


@flow(
    name="build-model",
    task_runner=ThreadPoolTaskRunner(max_workers=FAN_OUT),
    persist_result=False,
)
def build_model(
    recipe: Path, gpus: list[str] | None = None, precisions: list[PrecisionName] | None = None
) -> Any:
    """Build, verify and publish every engine of a recipe; gives an Outcome for each."""
    wanted = plan.narrowed(recipe_file.load(recipe), gpus=gpus, precisions=precisions)
    found = plan_recipe(wanted, local_offers())
    cached = cached_outcomes.submit(wanted.name, _cached_specs(found))
    built = [] if found.complete else _build_missing(wanted, found)
    outcomes = _gather(wanted, found, cached, built)
    publish_tables(wanted.name, outcomes)
    return _final_state(wanted.name, outcomes)


def _build_missing(wanted: Recipe, found: Survey) -> list[tuple[plan.Target, PrefectFuture[Any]]]:
    """The stages that the missing engines need, and a run for each of these engines."""
    missing = [planned.target for planned in found.builds if not planned.cached]
    exported = export_model.submit(wanted)
    reference = reference_outputs.submit(wanted, exported)
    slimmed = slim_model.submit(wanted, exported)
    prepared = {
        precision: prepare_precision.submit(wanted, slimmed, reference, precision)
        for precision in dict.fromkeys(target.precision for target in missing)
    }
    return [
        (target, engine.submit(wanted, target, slimmed, prepared[target.precision]))
        for target in missing
    ]


@task(name="engine", task_run_name="{target.gpu} {target.precision}", **STEP)
def engine(
    wanted: Recipe, target: plan.Target, slimmed: Slimmed, prepared: Prepared
) -> State[Outcome]:
    """One engine: refused when its graph is over budget, else built by its own run."""
    if not prepared.verification.passed:
        return engine_state(
            outcome.of_rejection(
                wanted.name, target.gpu, target.precision, prepared.verification
            )
        )
    spec = plan.resolve(wanted, target, slimmed.model, prepared.use)
    job = engines.Job(recipe=wanted.name, spec=spec, prepared=prepared)
    try:
        manifest = build_engine(job)
    except EnginefarmError as error:
        return engine_state(outcome.of_error(wanted.name, target.gpu, target.precision, error))
    return engine_state(outcome.of_manifest(manifest, "built"))


def _cached_specs(found: Survey) -> list[str]:
    return [planned.spec.digest for planned in found.builds if planned.cached and planned.spec]


def _gather(
    wanted: Recipe,
    found: Survey,
    cached: PrefectFuture[Any],
    built: list[tuple[plan.Target, PrefectFuture[Any]]],
) -> list[Outcome]:
    """Outcomes in the recipe's order: GPUs, then precisions."""
    rows: list[Outcome] = list(cached.result())
    rows += [outcome.of_skip(wanted.name, skip) for skip in found.skipped]
    for target, future in built:
        result = future.result(raise_on_failure=False)
        if isinstance(result, EngineMissing):
            result = result.outcome
        elif isinstance(result, EnginefarmError):
            result = outcome.of_error(wanted.name, target.gpu, target.precision, result)
        elif isinstance(result, BaseException):
            raise result
        rows.append(result)
    return outcome.in_order(wanted, rows)


def _final_state(recipe: str, outcomes: list[Outcome]) -> State[list[Outcome]]:
    if not all(row.fine for row in outcomes):
        error = EnginesMissing(recipe, outcomes)
        return Failed(message=str(error), data=error)
    if all(row.status == "cached" for row in outcomes):
        return Completed(name="Cached", message=f"{len(outcomes)} engines", data=outcomes)
    return Completed(message=f"{len(outcomes)} engines", data=outcomes)
