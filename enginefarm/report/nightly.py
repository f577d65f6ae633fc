"""The page of one store, and publishing it there."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

from enginefarm import __version__
from enginefarm.documents.layers import Layers
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EnginefarmError
from enginefarm.planning.survey import Survey
from enginefarm.pulling import fleet
from enginefarm.report.assemble import assemble
from enginefarm.report.model import WantedCell
from enginefarm.report.render import REPORT_COLUMNS, render
from enginefarm.store import channels
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables.filter import RowFilter
from enginefarm.tables.from_manifest import rows_from_manifest
from enginefarm.tables.layers import compared, layers_of
from enginefarm.tables.rows import BenchmarkRow
from enginefarm.tables.rules import recorded_rules
from enginefarm.tables.tables import BenchmarkTables

PREFIX = "reports/"
LATEST = f"{PREFIX}latest.html"
LAYERS_OF = 60
READERS = 8
LINK_SECONDS = 7 * 24 * 3600
"""How long a published page's link works: the longest that S3 signs."""


def page(
    store: EngineStore,
    *,
    nights: int = 30,
    recipes: Sequence[tuple[Recipe, Survey]] = (),
    title: str = "Engine farm",
    today: dt.date | None = None,
) -> str:
    """HTML of what the store holds: benchmark rows of the last nights, and every manifest.

    recipes: with these the page also shows what is wanted and not built, and what is stale;
    a recipe's thresholds are those that it names here, else those the farm saw last.
    """
    since = (today or dt.datetime.now(dt.UTC).date()) - dt.timedelta(days=nights)
    rows = BenchmarkTables(store.objects, tolerant=True).rows(
        RowFilter(since=since), REPORT_COLUMNS
    )
    asked = {recipe.name for recipe, _ in recipes} | {row.recipe for row in rows}
    manifests, abandoned = in_use(store, store.as_listed(), asked, since)
    rows = with_manifests(rows, manifests)
    rules = recorded_rules(store, (row.recipe for row in rows))
    rules |= {recipe.name: recipe.regression for recipe, _ in recipes}
    data = assemble(
        rows,
        title=title,
        store=store.url,
        wanted=[one for _, survey in recipes for one in wanted_of(survey)],
        rules=rules,
        notes=(
            f"enginefarm {__version__}, Python {platform.python_version()}, "
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs wrote this page. "
            f"It shows the last {nights} nights.",
            *(
                [
                    "Left out, because nothing was built or measured in these nights and no recipe "
                    f"or channel names them: {', '.join(abandoned)}."
                ]
                if abandoned
                else []
            ),
        ),
    )
    slower = {line.engines for model in data.models for line in model.regressions}
    layers = {pair: compared(store, *pair) for pair in slower}
    hosts = fleet.statuses(store)
    by_spec = {manifest.spec_digest: manifest for manifest in manifests}
    shown = [cell.row.spec_digest for model in data.models for cell in model.engines if cell.row]
    return render(
        replace(
            data,
            layers=layers,
            fleet=hosts,
            manifests=by_spec,
            engine_layers=_layers(store, [by_spec[one] for one in shown if one in by_spec]),
        )
    )


def in_use(
    store: EngineStore, manifests: Iterable[Manifest], asked: Collection[str], since: dt.date
) -> tuple[list[Manifest], list[str]]:
    """The engines of recipes that somebody still works with, and the names of the others.

    asked: recipes that are wanted or measured. One that is not, whose newest engine is from before
    `since`, and that no channel names, is abandoned.
    """
    found = sorted(manifests, key=lambda one: one.recipe)
    kept: list[Manifest] = []
    abandoned: list[str] = []
    for recipe, group in groupby(found, key=lambda one: one.recipe):
        of_recipe = list(group)
        newest = max(one.created_at.date() for one in of_recipe)
        if recipe in asked or newest >= since or channels.names(store, recipe):
            kept += of_recipe
        else:
            abandoned.append(recipe)
    return kept, abandoned


def _layers(store: EngineStore, manifests: Sequence[Manifest]) -> dict[str, Layers | str]:
    """By spec digest, of the newest engines: each costs a request."""

    def read(manifest: Manifest) -> Layers | str:
        try:
            return layers_of(store, manifest)
        except EnginefarmError as error:
            return error.what

    newest = sorted(manifests, key=lambda one: one.created_at, reverse=True)[:LAYERS_OF]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(read, newest)
        return {one.spec_digest: layers for one, layers in zip(newest, found, strict=True)}


def with_manifests(
    rows: Iterable[BenchmarkRow], manifests: Iterable[Manifest]
) -> list[BenchmarkRow]:
    """Oldest first; engines that no row speaks of get one from their manifest."""
    found = list(rows)
    in_rows = {(row.recipe, row.spec_digest, row.engine_digest) for row in found}
    for manifest in manifests:
        if (manifest.recipe, manifest.spec_digest, manifest.engine.digest) not in in_rows:
            found += rows_from_manifest(manifest)
    return sorted(found, key=lambda row: row.measured_at)


def wanted_of(survey: Survey) -> list[WantedCell]:
    """Every cell that the recipe asks for today."""
    builds = [
        WantedCell(
            recipe=survey.recipe,
            gpu=planned.target.gpu,
            precision=planned.target.precision,
            spec_digest=planned.spec.digest if planned.spec else None,
        )
        for planned in survey.builds
    ]
    skipped = [
        WantedCell(survey.recipe, skip.gpu, skip.precision, skip_reason=skip.reason)
        for skip in survey.skipped
    ]
    return builds + skipped


def publish(store: EngineStore, html: str, night: dt.date) -> str:
    """Writes the page to the store, dated and as the latest; returns the dated key."""
    key = f"{PREFIX}date={night}.html"
    data = html.encode()
    for name in (key, LATEST):
        store.objects.put(name, data, ContentType="text/html; charset=utf-8")
    return key


def link(store: EngineStore, key: str) -> str:
    """A URL that opens the page in a browser without credentials, for a week."""
    return store.objects.presigned_get(key, LINK_SECONDS)
