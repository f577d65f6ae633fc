"""The dashboard and the alerts ask only for metrics that workers serve."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from enginefarm.farm.worker import metrics

SERVED_AT_SCRAPE = {"enginefarm_queue_runs", "enginefarm_worker_info"}
SUFFIXES = ("_total", "_bucket", "_count", "_sum")


def expressions(infra: Path) -> Iterator[str]:
    dashboard = json.loads((infra / "metrics/grafana/enginefarm.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    alerts = yaml.safe_load((infra / "metrics/alerts.yaml").read_text("utf-8"))
    for group in alerts["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def known() -> set[str]:
    names = set(SERVED_AT_SCRAPE)
    for meter in metrics.meters():
        names |= {sample.name for family in meter.collect() for sample in family.samples}
        (family,) = meter.collect()
        names |= {family.name + suffix for suffix in SUFFIXES}
    return names


def test_every_metric_asked_for_is_served(infra: Path) -> None:
    asked = {name for text in expressions(infra) for name in re.findall(r"\benginefarm_\w+", text)}
    assert asked
    assert asked <= known()
    # … and each that is served can be seen somewhere
    seen = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in asked}
    assert {next(iter(meter.collect())).name for meter in metrics.meters()} <= seen


def test_panels_do_not_overlap(infra: Path) -> None:
    dashboard = json.loads((infra / "metrics/grafana/enginefarm.json").read_text("utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_alerts_point_into_the_runbook(infra: Path) -> None:
    alerts = yaml.safe_load((infra / "metrics/alerts.yaml").read_text("utf-8"))
    for rule in (rule for group in alerts["groups"] for rule in group["rules"]):
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        headings = re.findall(r"^## (.+)$", (infra.parent / page).read_text("utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w-]", "", text.lower().replace(" ", "-")) for text in headings}
        assert anchor in anchors, rule["alert"]


@pytest.mark.parametrize("target", ["control:9464", "worker-t4:9464", "worker-a100:9464"])
def test_prometheus_scrapes_every_worker(infra: Path, target: str) -> None:
    config = yaml.safe_load((infra / "metrics/prometheus.yaml").read_text("utf-8"))
    assert target in config["scrape_configs"][0]["static_configs"][0]["targets"]
