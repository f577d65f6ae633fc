"""The run form of build-model, filled in by a real browser, until its table is seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun

from tests import tiny_recipe
from tests.farm.farm_fixture import CHECKOUT, PATIENCE_S, Farm, until

SCREENSHOTS = CHECKOUT / "test-output"
PATIENCE_MS = 120_000


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    yield opened
    context.close()


def log_in(page: Page, base: str, password: str) -> None:
    """As a person does who opens the UI the first time."""
    page.goto(base)
    page.get_by_placeholder("admin:pass").fill(password)
    page.get_by_role("button", name="Login").click()


def open_form(page: Page, farm: Farm) -> str:
    """The run form, after the login; gives the deployment's id."""
    with farm.client() as client:
        deployment = client.read_deployment_by_name("build-model/build-model")
    base = farm.api.removesuffix("/api")
    log_in(page, base, farm.password())
    page.wait_for_url("**/dashboard**")
    page.goto(f"{base}/deployments/deployment/{deployment.id}/run")
    page.get_by_role("button", name="Submit").wait_for()
    return str(deployment.id)


def runs(farm: Farm, deployment: str) -> list[FlowRun]:
    with farm.client() as client:
        return client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
            limit=200,
        )


def listed(farm: Farm) -> list[str]:
    """The recipes that the form offers."""
    with farm.client() as client:
        deployment = client.read_deployment_by_name("build-model/build-model")
    field = (deployment.parameter_openapi_schema or {})["properties"]["recipe"]
    return [name for way in field.get("anyOf", ()) for name in way.get("enum", ())]


def shot(page: Page, name: str) -> Path:
    SCREENSHOTS.mkdir(exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path)
    return path


RECIPE, GPUS = ".schema-form-property-string", ".schema-form-property-array"


def choose(page: Page, field: str, value: str) -> None:
    """Picks a value in the first list of that kind in the form, as the keyboard does."""
    page.locator(field).first.locator("button").first.focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("option").get_by_text(value, exact=True).click()
    page.get_by_text("Run Name", exact=True).click()


def test_the_ui_asks_for_the_password(farm: Farm, page: Page) -> None:
    """By another name than the server knows itself by: as through a tunnel, on any port."""
    base = f"http://localhost:{farm.port}"
    log_in(page, base, "enginefarm:guess")
    expect(page.get_by_text("Invalid credentials")).to_be_visible()
    log_in(page, base, farm.password())
    page.wait_for_url("**/dashboard**")
    page.goto(f"{base}/deployments")
    # The first page of the list has ten rows, and other tests add deployments.
    page.get_by_placeholder("Search deployments").fill("nightly")
    expect(page.get_by_role("link", name="nightly-rebuild").first).to_be_visible()
    shot(page, "ui-logged-in")


def test_a_wrong_value_is_refused_by_the_form(farm: Farm, page: Page) -> None:
    deployment = open_form(page, farm)
    before = len(runs(farm, deployment))
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("'recipe' is a required property")).to_be_visible()
    shot(page, "ui-refused")
    assert len(runs(farm, deployment)) == before


def test_the_form_builds_a_recipe_and_its_table_is_seen(farm: Farm, page: Page) -> None:
    tiny_recipe.write(farm.recipes / "by-hand", name="by-hand", salt="by-hand", precisions=["fp16"])
    until(lambda: "by-hand" in listed(farm), "the form lists the recipe")
    deployment = open_form(page, farm)
    before = {run.id for run in runs(farm, deployment)}
    choose(page, RECIPE, "by-hand")
    choose(page, GPUS, "a100")
    shot(page, "ui-form")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(lambda url: not url.endswith("/run"))
    (run_id,) = {run.id for run in runs(farm, deployment)} - before

    base = farm.api.removesuffix("/api")
    page.goto(f"{base}/runs/flow-run/{run_id}")
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=PATIENCE_S * 1000)
    shot(page, "ui-run")
    page.get_by_text("Artifacts", exact=True).first.click()
    page.get_by_text("engines-by-hand", exact=False).first.click()
    expect(page.get_by_text("a100").first).to_be_visible()
    picture = shot(page, "ui-table")
    assert picture.stat().st_size > 10_000
    assert farm.look(run_id).parameters["gpus"] == ["a100"]
    assert [one.spec.label for one in farm.store.manifests("by-hand")] == ["a100/fp16"]
