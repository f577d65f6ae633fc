"""The report in a real browser: it opens from a file, alone, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_text import TEXTS, report
from playwright.sync_api import Browser, Page
from sample_manifest import make_manifest
from sample_rows import make_row

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import ToolUse
from enginefarm.report import assemble, render
from enginefarm.tables.rows import BenchmarkRow

EVIL = "<img src=x onerror=window.hacked=1>"
GPUS = ("t4", "a100", "l4")


def rows(models: int) -> list[BenchmarkRow]:
    made = [
        make_row(
            night,
            recipe=f"model-{index:02}",
            gpu=gpu,
            precision=precision,
            latency_ms_median=2.0 + 0.01 * (night % 3),
            device_verification="passed",
            cosine_min=0.999,
            relative_l2_max=0.01,
            size_bytes=9_000_000,
            build_seconds=30.0,
            reason=EVIL,
        )
        for night in range(8)
        for index in range(models)
        for gpu in GPUS
        for precision in ("fp16", "int8")
    ]
    slow = make_row(9, recipe="model-00", latency_ms_median=3.0, device_verification="passed")
    failed = make_row(9, recipe="model-01", gpu="l4", outcome="failed", reason=EVIL)
    return [*made, slow, failed]


class Watched:
    """A page, and everything that it asked for or complained of."""

    def __init__(self, page: Page, path: Path, place: str = "") -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(path.as_uri() + place)


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def opened(
    chromium: Browser, tmp_path: Path, scheme: str, request: pytest.FixtureRequest
) -> Iterator[Watched]:
    models = getattr(request, "param", 3)
    path = tmp_path / "report.html"
    path.write_text(render(assemble(rows(models), title="Farm", store="s3://b")), "utf-8")
    context = chromium.new_context(
        color_scheme="dark" if scheme == "dark" else "light",
        offline=True,
        viewport={"width": 1240, "height": 900},
    )
    yield Watched(context.new_page(), path)
    context.close()


def test_it_opens_offline_and_asks_for_nothing(opened: Watched) -> None:
    assert opened.page.locator("h1").inner_text() == "Farm"
    assert len(opened.requests) == 1
    assert opened.complaints == []


def test_text_from_outside_stays_text(opened: Watched) -> None:
    assert opened.page.evaluate("window.hacked") is None
    assert EVIL in opened.page.locator("#attention").inner_text()
    assert opened.page.locator("img").count() == 0


@pytest.fixture
def shown(chromium: Browser, tmp_path: Path) -> Iterator[Callable[[str, str], Watched]]:
    """Opens a page of that HTML at that place in it."""
    context = chromium.new_context(offline=True)

    def show(html: str, place: str = "") -> Watched:
        path = tmp_path / "shown.html"
        path.write_text(html, "utf-8")
        return Watched(context.new_page(), path, place)

    yield show
    context.close()


def test_no_text_of_any_field_is_run(shown: Callable[..., Watched]) -> None:
    """The page's own policy would stop a script too, and complain: no script asks to run."""
    for text in TEXTS:
        found = shown(render(report(text)))
        for element in found.page.locator("summary, .night, #compare-a").all():
            element.dispatch_event("mouseover")
            element.dispatch_event("focus")
        found.page.locator("#compare-a").select_option(index=1)
        assert found.page.evaluate("window.hacked") is None
        assert found.complaints == []
        assert len(found.requests) == 1
        found.page.close()


def test_the_policy_stops_what_would_slip_through(shown: Callable[..., Watched]) -> None:
    html = render(assemble(rows(1), title="Farm", store="s3://b")).replace(
        "</main>", f"{TEXTS[0]}{TEXTS[1]}{TEXTS[3]}</main>"
    )
    found = shown(html)
    assert found.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in line for line in found.complaints)


@pytest.mark.parametrize("place", ["#%E0%A4%A", "#%", "#<img src=x onerror=window.hacked=1>"])
def test_a_link_to_nowhere_does_no_harm(shown: Callable[..., Watched], place: str) -> None:
    found = shown(render(assemble(rows(2), title="Farm", store="s3://b")), place)
    assert found.complaints == []
    found.page.locator("#filter").fill("model-01")
    assert found.page.locator("[data-engine]:visible").count() < 12


def test_the_matrix_and_the_list_say_what_is_wrong(opened: Watched) -> None:
    page = opened.page
    attention = page.locator("#attention li")
    assert attention.count() == 2
    assert "× 1.4" in attention.nth(0).inner_text()
    assert page.locator(".matrix .s-verified").count() == 3 * 6 - 1
    assert page.locator(".matrix .s-failed").count() == 1


def test_text_contrasts_with_its_background(opened: Watched) -> None:
    """WCAG's 4.5 for text, measured on the computed colors of every kind of text."""
    ratios = opened.page.evaluate(
        """() => {
          const rgb = c => c.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .03928
            ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
          const behind = node => {
            for (; node; node = node.parentElement) {
              const c = rgb(getComputedStyle(node).backgroundColor);
              if (c.length === 3 || c[3] > 0) return c;
            }
          };
          const out = {};
          for (const what of ["h1", "p.quiet", ".tile dt", ".tile.bad dd", "a", ".s-verified",
                              ".s-failed", ".s-slower", "td", "thead th", "code", "figcaption",
                              "footer p", ".legend .s-built", ".legend .s-stale", ".s-skipped",
                              "svg text"]) {
            const node = document.querySelector(what);
            const style = getComputedStyle(node);
            const ink = rgb(node instanceof SVGElement ? style.fill : style.color);
            const [a, b] = [light(ink), light(behind(node))].sort((x, y) => y - x);
            out[what] = (a + .05) / (b + .05);
          }
          return out;
        }"""
    )
    assert {what: round(ratio, 1) for what, ratio in ratios.items() if ratio < 4.5} == {}


def test_the_two_schemes_differ(opened: Watched, scheme: str) -> None:
    color = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(color.removeprefix("rgb(").split(",")[0])
    assert (red < 60) is (scheme == "dark")


@pytest.mark.parametrize("width", [360, 390, 1240])
def test_nothing_sticks_out_sideways(opened: Watched, width: int) -> None:
    """On a phone not even a table: its rows are cards."""
    page = opened.page
    page.set_viewport_size({"width": width, "height": 900})
    for address in ("#matrix", first_engine(page)):
        page.evaluate("hash => { location.hash = hash; }", address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width < 700:
            wide = page.evaluate(
                """() => [...document.querySelectorAll(".scroll")].filter(s => s.checkVisibility())
                  .filter(s => s.scrollWidth > s.clientWidth).map(s => s.innerText.slice(0, 200))"""
            )
            assert wide == []


def test_engines_made_by_many_tools_are_compared_within_the_page(
    shown: Callable[..., Watched],
) -> None:
    tools = tuple(
        ToolUse(name="enginefarm.a-long-name-of-a-tool", version=str(n)) for n in range(5)
    )
    manifests: dict[str, Manifest] = {}
    for label in ("t4", "l4"):
        made = make_manifest(engine=label.encode(), label=label)
        use = made.spec.precision.model_copy(update={"tools": tools[: 5 if label == "t4" else 4]})
        spec = made.spec.model_copy(update={"precision": use})
        manifests[made.spec_digest] = made.model_copy(update={"spec": spec})
    timed = [
        make_row(
            0, gpu=one.gpu, spec_digest=spec, engine_digest=one.engine.digest, cosine_min=cosine
        )
        for (spec, one), cosine in zip(manifests.items(), (0.99999, 0.99998), strict=True)
    ]
    data = assemble(timed, title="Farm", store="s3://b")
    page = shown(render(replace(data, manifests=manifests))).page
    page.set_viewport_size({"width": 1240, "height": 900})
    compared = page.locator("#compared")
    assert "a-long-name-of-a-tool 4" in compared.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1240
    same = compared.locator("tr", has_text="cosine")
    assert "× 1.00" in same.inner_text()
    assert same.locator(".worse").count() == 0, "what is shown as equal is not called worse"


def first_engine(page: Page) -> str:
    """The address of the first engine in the first model's table."""
    return page.locator(".model .engines a").first.get_attribute("href") or ""


def test_an_engine_has_a_page_and_a_way_back(opened: Watched) -> None:
    page = opened.page
    assert page.locator("article.engine:visible").count() == 0
    page.locator(".model .engines a").first.click()
    assert page.locator("article.engine:visible").count() == 1
    shown = page.locator("article.engine:visible")
    assert shown.locator("h2").inner_text() == "model-00 · t4 · fp16"
    assert "enginefarm pull model-00 --gpu t4 --precision fp16" in shown.inner_text()
    assert "toolchain\ntensorrt 10.16.1.11" in shown.inner_text()
    assert page.locator("#matrix:visible").count() == 0, "the page is the engine's alone"
    shown.locator("a", has_text="all engines").click()
    assert page.locator("article.engine:visible").count() == 0
    assert page.locator("#matrix").is_visible()


def test_words_find_engines(opened: Watched) -> None:
    page = opened.page
    page.locator("#filter").fill("INT8 l4")
    assert page.locator("tr[data-engine]:visible").count() == 3
    assert page.locator("details.model:visible").count() == 3
    page.locator("#filter").fill("failed")
    assert page.locator("tr[data-engine]:visible").count() == 1
    assert page.locator(".matrix tbody tr:visible").count() == 1
    page.locator("#filter").fill("nothing is called so")
    assert page.locator("[data-model]:visible").count() == 0
    page.locator("#filter").fill("")
    assert page.locator("tr[data-engine]:visible").count() == 18


def test_two_engines_are_compared(opened: Watched) -> None:
    page = opened.page
    page.locator("#compare-a").select_option(label="model-01 · t4 · fp16")
    page.locator("#compare-b").select_option(label="model-00 · t4 · fp16")
    rows = page.locator("#compared tbody tr").all_inner_texts()
    told = {row.split("\t")[0]: row.split("\t")[1:] for row in rows}
    assert told["median latency"] == ["2.01 ms", "3.00 ms", "× 1.49"]
    assert told["cosine to FP32"][2] == "× 1.00"
    assert page.locator("#compared .worse").count() == 1
    page.locator("#compare-a").select_option(label="model-00 · t4 · fp16")
    assert page.locator("#compared .worse").count() == 0


def test_a_history_is_enlarged_by_a_click(opened: Watched) -> None:
    night = opened.page.locator(".night").first
    before = night.bounding_box()
    night.click()
    after = night.bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] > 2 * before["width"]


def test_no_label_overlaps_its_bar_or_leaves_its_chart(opened: Watched) -> None:
    outside = opened.page.evaluate(
        """() => [...document.querySelectorAll("figure svg")].filter(s => s.checkVisibility())
          .flatMap(s => {
            const box = s.getBoundingClientRect();
            return [...s.querySelectorAll("text")].filter(t => {
              const b = t.getBoundingClientRect();
              return b.left < box.left - 1 || b.right > box.right + 1;
            }).map(t => t.textContent);
          })"""
    )
    assert outside == []


@pytest.mark.parametrize("opened", [20], indirect=True)
def test_of_many_models_those_that_need_attention_are_open_and_names_filter(
    opened: Watched,
) -> None:
    page = opened.page
    assert page.locator("details[open]").count() == 2
    page.locator("#filter").fill("model-1")
    assert page.locator(".matrix tbody tr:visible").count() == 10
    page.locator("#filter").fill("")
    page.locator(".matrix a", has_text="model-07").click()
    assert page.locator("#model-model-07").get_attribute("open") is not None
    assert page.locator("#model-model-07 h2").is_visible()
