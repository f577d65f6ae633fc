"""`enginefarm build`: the flow, run here, with its progress and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginefarm.cli.init import model_options, recipe_of, wishes
from enginefarm.cli.options import gpus_option, precisions_option
from enginefarm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager

    from enginefarm.planning.outcome import Outcome


@click.command()
@click.argument("recipe", metavar="RECIPE|MODEL")
@gpus_option("Build for these GPUs only (repeat, or separate with commas); required for a MODEL.")
@precisions_option("Only these precisions; of a MODEL: which, fp16 by default.")
@model_options
@click.option("--save", type=click.Path(path_type=Path), help="Keep the inferred recipe.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the outcomes as JSON on standard output."
)
@click.option("-v", "--verbose", is_flag=True, help="Show Prefect's log lines too.")
def build(
    recipe: str,
    gpus: tuple[str, ...],
    precisions: tuple[str, ...],
    inputs: tuple[str, ...],
    dims: tuple[str, ...],
    calibration: str | None,
    name: str | None,
    save: Path | None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Build every engine of RECIPE that is not in the store yet.

    MODEL, an .onnx or .pt2 file or FILE.py:CALLABLE, needs no recipe: one is inferred, shown,
    and kept with --save. Without data of yours, its engines are compared on random inputs.

    Runs the Prefect flow build-model in this process, with a Prefect API of its own that ends
    with it; workers are used by the deployment of the same name (enginefarm deploy). When every
    engine is there already, no flow runs.
    """
    from enginefarm.recipes import infer

    if not infer.is_model(recipe):
        if inputs or dims or calibration or name or save:
            raise UsageError(
                "--input, --dim, --calibration, --name and --save go with a model",
                fix=f"write these in the recipe {recipe}",
            )
        return _built(Path(recipe), gpus, precisions, as_json, verbose)
    wanted = wishes(gpus, precisions, inputs, dims, calibration, name)
    with recipe_of(recipe, wanted, save) as file:
        return _built(file, (), (), as_json, verbose)


def _built(
    recipe: Path, gpus: tuple[str, ...], precisions: tuple[str, ...], as_json: bool, verbose: bool
) -> int:
    from enginefarm.cli.tables import print_outcomes
    from enginefarm.planning import outcome

    cached = _all_cached(recipe, gpus, precisions)
    if cached is not None:
        print_outcomes(cached, as_json=as_json)
        return outcome.exit_code(cached)

    from enginefarm.farm.server.environment import prepare
    from enginefarm.farm.server.private import private_api

    prepare(verbose=verbose)
    with _stopped_by_signals(), private_api() as api:
        _warm(recipe)

        from enginefarm.cli.progress_view import watched
        from flows.build_model import EnginesMissing, build_model

        api.wait()
        with watched(enabled=not as_json):
            state = build_model(
                str(recipe.resolve()), list(gpus), list(precisions), return_state=True
            )
    result = state.result(raise_on_failure=False)
    if isinstance(result, EnginesMissing):
        print_outcomes(result.outcomes, as_json=as_json)
        return outcome.exit_code(result.outcomes)
    if isinstance(result, BaseException):
        raise result
    print_outcomes(result, as_json=as_json)
    return 0


def _warm(recipe: Path) -> None:
    """Loads what the first stages need while Prefect's API starts in a process of its own."""
    import threading
    from importlib import import_module

    from enginefarm.recipes import file as recipe_file

    onnx = recipe_file.load(recipe).source.LOADS == "file"
    names = ("onnxruntime", "onnxslim") + (() if onnx else ("torch.onnx", "onnxscript"))

    def load() -> None:
        for name in names:
            import_module(name)

    threading.Thread(target=load, daemon=True).start()


def _all_cached(
    recipe: Path, gpus: tuple[str, ...], precisions: tuple[str, ...]
) -> list[Outcome] | None:
    """The outcomes when there is nothing to do, without the seconds that an API takes."""
    from enginefarm.planning import plan, stages
    from enginefarm.planning.survey import cached_outcomes, local_offers, survey
    from enginefarm.recipes import file as recipe_file

    wanted = plan.narrowed(recipe_file.load(recipe), gpus=gpus, precisions=precisions)
    site = stages.here()
    found = survey(site, wanted, local_offers())
    return cached_outcomes(site, wanted, found) if found.complete else None


def _stopped_by_signals() -> AbstractContextManager[None]:
    """Ctrl-C and SIGTERM kill the builders first, then end the command."""
    import signal
    from contextlib import contextmanager

    from enginefarm.child.cancellation import CANCEL

    @contextmanager
    def guard() -> Generator[None]:
        before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int, frame: object) -> None:
            CANCEL.set()
            raise KeyboardInterrupt

        for name in before:
            signal.signal(name, stop)
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    return guard()
