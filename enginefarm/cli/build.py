"""`enginefarm build`: the flow, run here, with its progress and its table."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginefarm.cli import completion
from enginefarm.cli.init import model_options, recipe_of, wishes
from enginefarm.cli.options import NamedPath, gpus_option, precisions_option
from enginefarm.cli.tables import print_outcomes
from enginefarm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Future

    from prefect.client.schemas.objects import State

    from enginefarm.documents.recipe import Recipe
    from enginefarm.planning.outcome import Outcome


@click.command()
@click.argument("recipe", metavar="RECIPE|MODEL", shell_complete=completion.recipe_files)
@gpus_option("Build for these GPUs only (repeat, or separate with commas); required for a MODEL.")
@precisions_option("Build only these precisions; for a MODEL the default is fp16.")
@model_options
@click.option(
    "--save", type=NamedPath(path_type=Path), help="Keep the inferred recipe in this file."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the outcomes as JSON on standard output."
)
@click.option("-v", "--verbose", is_flag=True, help="Show Prefect's log lines too.")
def build(
    recipe: str,
    gpus: tuple[str, ...],
    precisions: tuple[str, ...],
    save: Path | None,
    as_json: bool,
    verbose: bool,
    **model: Any,
) -> int:
    """Build every engine of RECIPE that is not in the store yet.

    MODEL, an .onnx or .pt2 file or FILE.py:CALLABLE, needs no recipe: one is inferred, shown,
    and kept with --save. Without your own data, its engines are compared on random inputs.

    This command builds on this machine: it runs the Prefect flow build-model with a private
    Prefect API. To use the workers of a farm, run `enginefarm submit`. When every engine is
    already built, no flow runs.
    """
    from enginefarm.recipes import model_paths

    model_paths.refuse_other(recipe)
    if not model_paths.is_model(recipe):
        if save or any(model.values()):
            raise UsageError(
                "--input, --dim, --calibration, --name and --save are only for a model",
                fix=f"set these in the recipe {recipe}",
            )
        return _built(Path(recipe), gpus, precisions, as_json, verbose)
    wanted = wishes(gpus, precisions, **model)
    with recipe_of(recipe, wanted, save) as file:
        return _built(file, (), (), as_json, verbose)


def _built(
    recipe: Path, gpus: tuple[str, ...], precisions: tuple[str, ...], as_json: bool, verbose: bool
) -> int:
    from enginefarm.planning import outcome, plan
    from enginefarm.recipes import file as recipe_file

    wanted = plan.narrowed(recipe_file.load(recipe), gpus=gpus, precisions=precisions)
    if not as_json:  # what comes next takes seconds
        click.echo(
            f"{wanted.name}: {', '.join(wanted.gpus)} × {', '.join(wanted.precisions)}", err=True
        )
    from enginefarm.cli.progress_view import watched

    with watched(enabled=not as_json):
        cached = _all_cached(wanted)
        found = None if cached is not None else _by_flow(wanted, recipe, gpus, precisions, verbose)
    if cached is None:
        cached = _outcomes(found)
    print_outcomes(cached, as_json=as_json)
    return outcome.exit_code(cached)


def _by_flow(
    wanted: Recipe,
    recipe: Path,
    gpus: tuple[str, ...],
    precisions: tuple[str, ...],
    verbose: bool,
) -> State[Any]:
    """The flow's final state. The model is exported while Prefect, its API and the flow start; the
    flow's own export waits for that one."""
    from enginefarm.farm.server.environment import prepare
    from enginefarm.farm.server.private import private_api, without_heartbeats

    prepare(verbose=verbose)
    with private_api() as api, _exporting(wanted) as exported:
        from flows.build_model import build_model

        api.wait()
        if exported.done():
            exported.result()  # raises what ended it: no flow begins then
        with without_heartbeats():
            state: State[Any] = build_model(
                str(recipe.resolve()), list(gpus), list(precisions), return_state=True
            )
        return state


def _outcomes(state: State[Any] | None) -> list[Outcome]:
    """Raises: what ended the flow, unless it says which engines are missing."""
    from flows.build_model import EnginesMissing

    assert state is not None
    result: Any = state.result(raise_on_failure=False)
    if isinstance(result, EnginesMissing):
        return result.outcomes
    if isinstance(result, BaseException):
        raise result
    return result


@contextmanager
def _exporting(wanted: Recipe) -> Generator[Future[Any]]:
    """The export, begun in a thread; it works in a child process.

    Leaving the block waits for it: Ctrl-C, or a flow that fails, has it ended first.
    """
    from enginefarm.planning import stages
    from enginefarm.store.check import require_conditional_writes

    site = stages.here()
    require_conditional_writes(site.store.objects)
    with ThreadPoolExecutor(1) as pool:
        yield stages.begin_export(pool, site, wanted)


def _all_cached(wanted: Recipe) -> list[Outcome] | None:
    """The outcomes when there is nothing to do, without the seconds that an API takes."""
    from enginefarm.planning import stages

    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(stages.here)  # an embedded store may have to start
        from enginefarm.planning.survey import cached_outcomes, local_offers, survey
    site = opening.result()
    found = survey(site, wanted, local_offers())
    return cached_outcomes(site, wanted, found) if found.complete else None
