"""The steps of a recipe on the CPU: plan, export, reference, slim, a graph for each precision."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.logging import get_run_logger

from enginefarm.documents.recipe import Recipe
from enginefarm.farm.policy import STEP
from enginefarm.farm.worker import metrics
from enginefarm.planning import graphs, plan, stages
from enginefarm.planning.survey import Survey, survey
from enginefarm.tables import rules as regression_rules


@task(name="plan", task_run_name="plan {recipe.name}", **STEP)
def plan_recipe(recipe: Recipe, offers: Sequence[plan.Offer]) -> Survey:
    site = stages.here()
    found = survey(site, recipe, offers)
    regression_rules.remember(site.store, recipe)
    cached = sum(planned.cached for planned in found.builds)
    get_run_logger().info(
        "%s: %d engines wanted, %d cached, %d skipped",
        recipe.name,
        len(found.builds),
        cached,
        len(found.skipped),
    )
    return found


@task(name="export", task_run_name="export {recipe.name}", **STEP)
def export_model(recipe: Recipe) -> stages.ExportedModel:
    exported = stages.export(stages.here(), recipe)
    metrics.stage("export", hit=exported.cached)
    get_run_logger().info(
        "ONNX %s, opset %d, %.1f s%s",
        exported.onnx.digest[:12],
        exported.onnx.opset,
        exported.seconds,
        " (cached)" if exported.cached else "",
    )
    return exported


@task(
    name="reference",
    task_run_name="reference {recipe.name}",
    **STEP,
)
def reference_outputs(recipe: Recipe, exported: stages.ExportedModel) -> stages.Reference:
    made = stages.reference(stages.here(), recipe, exported.outputs)
    metrics.stage("reference", hit=made.cached)
    get_run_logger().info("FP32 reference %s, %.1f s", made.npz.digest[:12], made.seconds)
    return made


@task(name="slim", task_run_name="slim {recipe.name}", **STEP)
def slim_model(recipe: Recipe, exported: stages.ExportedModel) -> stages.SlimmedModel:
    slimmed = stages.slim(stages.here(), recipe, exported)
    metrics.stage("slim", hit=slimmed.cached)
    get_run_logger().info("slimmed ONNX %s", slimmed.model.onnx.digest[:12])
    return slimmed


@task(
    name="calibrate",
    task_run_name="{precision} {recipe.name}",
    **STEP,
)
def prepare_precision(
    recipe: Recipe, slimmed: stages.SlimmedModel, reference: stages.Reference, precision: str
) -> graphs.PreparedGraph:
    prepared = graphs.prepare(stages.here(), recipe, slimmed.model, reference, precision)
    metrics.stage("prepare", hit=prepared.cached)
    verdict = "within budget" if prepared.verification.passed else "over budget"
    get_run_logger().info("%s graph %s: %s", precision, prepared.graph.digest[:12], verdict)
    return prepared
