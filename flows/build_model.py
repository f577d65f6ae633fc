"""A recipe -> its engines: the once-per-recipe stages here, then one run an engine."""

# Prefect types Task.submit in part: it takes futures in place of values.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import deployment
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from enginefarm.building import engine as engines
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EnginefarmError
from enginefarm.farm import outcome_rows
from enginefarm.farm.benchmarks import queue_benchmarks
from enginefarm.farm.dispatch import build_on_pool, cancel_on_error, online_offers
from enginefarm.farm.parameters import Gpus, Precisions, RecipePath, build_name, recipe_file_at
from enginefarm.farm.policy import NO_RESULTS, STEP
from enginefarm.planning import outcome, plan
from enginefarm.planning.graphs import PreparedGraph
from enginefarm.planning.outcome import Outcome
from enginefarm.planning.stages import SlimmedModel, here
from enginefarm.planning.survey import Survey, local_offers
from enginefarm.recipes import file as recipe_file
from enginefarm.store import reverification
from enginefarm.store.check import require_conditional_writes
from enginefarm.toolchains.missing_operators import lacking
from flows.build_engine import build_here
from tasks.model import (
    export_model,
    plan_recipe,
    prepare_precision,
    reference_outputs,
    slim_model,
)
from tasks.outcomes import EngineMissing, cached_outcomes, engine_state, publish_tables

# Threads here only wait: builds are held to the number of cores where they start, or to
# one a worker. A recipe's engines are all handed out together, up to this many.
FAN_OUT = 128
RUNNER: Any = ThreadPoolTaskRunner(max_workers=FAN_OUT)


class EnginesMissing(EnginefarmError):
    """Some engines of a recipe are missing; `outcomes` has the outcome of every engine."""

    def __init__(self, recipe: str, outcomes: list[Outcome]) -> None:
        missing = [row for row in outcomes if not row.fine]
        super().__init__(
            f"{recipe}: {len(missing)} of {len(outcomes)} engines are missing",
            why="\n       ".join(f"{row.label} {row.status}: {row.reason}" for row in missing),
            fix="what was finished is kept; fix the cause and run the same command again",
        )
        self.outcomes = outcomes


@flow(
    name="build-model",
    flow_run_name=build_name,
    task_runner=RUNNER,
    **NO_RESULTS,
)
def build_model(
    recipe: RecipePath,
    gpus: Gpus = [],  # noqa: B006 - the run form shows it, and nothing changes it
    precisions: Precisions = [],  # noqa: B006
) -> Any:
    """Build, verify and publish every engine of a recipe; returns an Outcome for each.

    On a farm, engines are built in the pools of their GPUs; otherwise all of it runs here.

    Args:
        recipe: The recipe's file, or its folder: absolute, or from a recipe root of the
            control worker (ENGINEFARM_RECIPE_ROOTS). Example: 03_digits/recipe.yaml
            @store/NAME: the recipe of that name in the store.
        gpus: Build only for these of the recipe's GPUs. Empty: for all of them.
        precisions: Build only these of the recipe's precisions. Empty: all of them.
    """
    try:
        with cancel_on_error():
            return _build(recipe, gpus, precisions)
    except EnginefarmError as error:
        # A refusal: its words are the state's, without a traceback of the engine.
        return Failed(name=f"Failed: {type(error).__name__}", message=str(error), data=error)


def _build(recipe: str, gpus: Gpus, precisions: Precisions) -> State[list[Outcome]]:
    on_farm = deployment.id is not None
    file = recipe_file_at(recipe) if on_farm else Path(recipe)
    wanted = plan.narrowed(recipe_file.load(file), gpus=gpus, precisions=precisions)
    found = plan_recipe(wanted, online_offers() if on_farm else local_offers())
    if not found.complete:
        require_conditional_writes(here().store.objects)
    specs = [planned.spec.digest for planned in found.builds if planned.cached and planned.spec]
    cached = cached_outcomes.submit(wanted.name, specs)
    built = [] if found.complete else _build_missing(wanted, found, on_farm)
    outcomes = _gather(wanted, found, cached, built)
    if on_farm and built:
        queue_benchmarks(wanted, outcomes)
    publish_tables(wanted.name, outcomes)
    return _final_state(wanted.name, outcomes)


Pending = tuple[plan.BuildTarget, PrefectFuture[Any]]
"""An engine that is being built, and its task; the task of its graph when that one failed."""


def _build_missing(wanted: Recipe, found: Survey, on_farm: bool) -> list[Pending]:
    """The stages that the missing engines need, and a run for each of these engines.

    Tasks are given values: Prefect asks the server for the state of each future that one is given.
    Raises: what export, reference and slim raise: without these there is no engine at all.
    """
    missing = [planned.target for planned in found.builds if not planned.cached]
    exported = export_model(wanted)
    made = reference_outputs.submit(wanted, exported), slim_model.submit(wanted, exported)
    reference, slimmed = (stage.result() for stage in made)
    graphs = {
        prepare_precision.submit(wanted, slimmed, reference, precision): precision
        for precision in dict.fromkeys(target.precision for target in missing)
    }
    built: list[Pending] = []
    for graph in as_completed([*graphs]):
        prepared: Any = graph.result(raise_on_failure=False)
        built += [
            (
                target,
                engine.submit(wanted, target, slimmed, prepared, on_farm)
                if isinstance(prepared, PreparedGraph)
                else graph,
            )
            for target in missing
            if target.precision == graphs[graph]
        ]
    outcome_rows.preload()  # while the engines are built
    return built


@task(name="engine", task_run_name="{target.gpu} {target.precision}", **STEP)
def engine(
    wanted: Recipe,
    target: plan.BuildTarget,
    slimmed: SlimmedModel,
    prepared: PreparedGraph,
    on_farm: bool,
) -> State[Outcome]:
    """One engine: refused when its graph is over budget, else built by its own run.

    An engine that is already built takes on today's verification figures, good or bad.
    """
    spec = plan.resolve(wanted, target, slimmed.model, prepared.use)
    budget = wanted.budget(target.precision)
    job = engines.Job(recipe=wanted.name, spec=spec, prepared=prepared, budget=budget)
    figures = prepared.verification
    lack = lacking(
        target.toolchain.name,
        spec.gpu,
        target.precision,
        slimmed.model.operators,
        prepared.details,
    )
    if lack is not None and wanted.allow_skip:
        skip = plan.Skip(gpu=target.gpu, precision=target.precision, reason=str(lack))
        return engine_state(outcome.of_skip(wanted.name, skip))
    try:
        if lack is not None:
            raise lack
        reverification.write(
            here().store, wanted.name, spec.digest, prepared.graph, figures, prepared.reference
        )
        if not figures.passed:
            return engine_state(
                outcome.of_rejection(wanted.name, target.gpu, target.precision, figures)
            )
        if on_farm:
            manifest, cached = build_on_pool(job, target.pool)
        else:
            manifest, cached = build_here(job)
    except EnginefarmError as error:
        if on_farm and error.transient:
            raise  # this step is tried again
        return engine_state(outcome.of_error(wanted.name, target.gpu, target.precision, error))
    return engine_state(outcome.of_manifest(wanted.name, manifest, "cached" if cached else "built"))


def _gather(
    wanted: Recipe,
    found: Survey,
    cached: PrefectFuture[Any],
    built: list[Pending],
) -> list[Outcome]:
    """Outcomes in the recipe's order: GPUs, then precisions."""
    rows: list[Outcome] = list(cached.result())
    rows += [outcome.of_skip(wanted.name, skip) for skip in found.skipped]
    rows += [_outcome(wanted, target, task) for target, task in built]
    return outcome.in_order(wanted, rows)


def _outcome(wanted: Recipe, target: plan.BuildTarget, task: PrefectFuture[Any]) -> Outcome:
    result = task.result(raise_on_failure=False)
    if isinstance(result, EngineMissing):
        return result.outcome
    if isinstance(result, EnginefarmError):
        return outcome.of_error(wanted.name, target.gpu, target.precision, result)
    if isinstance(result, BaseException):
        raise result
    return result


def _final_state(recipe: str, outcomes: list[Outcome]) -> State[list[Outcome]]:
    if not all(row.fine for row in outcomes):
        error = EnginesMissing(recipe, outcomes)
        return Failed(message=str(error), data=error)
    if all(row.status == "cached" for row in outcomes):
        return Completed(name="Cached", message=f"{len(outcomes)} engines", data=outcomes)
    return Completed(message=f"{len(outcomes)} engines", data=outcomes)
