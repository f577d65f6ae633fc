"""The page of one store, and publishing it there."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace

from enginefarm import __version__
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.recipe import Recipe
from enginefarm.planning.survey import Survey
from enginefarm.pulling import fleet
from enginefarm.report.assemble import assemble
from enginefarm.report.model import Wanted
from enginefarm.report.render import REPORT_COLUMNS, render
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables.filter import RowFilter
from enginefarm.tables.from_manifest import rows_from_manifest
from enginefarm.tables.layers import compared
from enginefarm.tables.rows import BenchmarkRow
from enginefarm.tables.rules import recorded_rules
from enginefarm.tables.tables import BenchmarkTables

PREFIX = "reports/"
LATEST = f"{PREFIX}latest.html"
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
    rows = with_manifests(rows, store.manifests())
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
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs made this page. "
            f"It shows the last {nights} nights.",
        ),
    )
    slower = {line.engines for model in data.models for line in model.regressions}
    layers = {pair: compared(store, *pair) for pair in slower}
    hosts = fleet.standings(store, fleet.states(store))
    return render(replace(data, layers=layers, fleet=hosts))


def with_manifests(
    rows: Iterable[BenchmarkRow], manifests: Iterable[Manifest]
) -> list[BenchmarkRow]:
    """Oldest first; engines that no row speaks of get one from their manifest."""
    found = list(rows)
    spoken_of = {(row.spec_digest, row.engine_digest) for row in found}
    for manifest in manifests:
        if (manifest.spec_digest, manifest.engine.digest) not in spoken_of:
            found += rows_from_manifest(manifest)
    return sorted(found, key=lambda row: row.measured_at)


def wanted_of(survey: Survey) -> list[Wanted]:
    """Every cell that the recipe asks for today."""
    builds = [
        Wanted(
            recipe=survey.recipe,
            gpu=planned.target.gpu,
            precision=planned.target.precision,
            spec_digest=planned.spec.digest if planned.spec else None,
        )
        for planned in survey.builds
    ]
    skipped = [
        Wanted(survey.recipe, skip.gpu, skip.precision, skip_reason=skip.reason)
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
