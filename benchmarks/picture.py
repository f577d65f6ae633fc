"""The report of a store as a picture, taken in Chromium.

    ENGINEFARM_STORE=… python benchmarks/picture.py docs/images/report.png [RECIPE.yaml …]

Writes NAME.png (light) and NAME-dark.png, the top of the page; NAME-engine.png, the page of its
first engine; and NAME-phone.png, as wide as a phone. What is on them is what that store holds;
nothing is made up for it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from enginefarm.planning.survey import local_offers, survey
from enginefarm.recipes import file as recipe_file
from enginefarm.report import nightly
from enginefarm.store import site

PHONE = 390
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="*", type=Path)
    parser.add_argument("--width", type=int, default=1180)
    parser.add_argument("--height", type=int, default=1300)
    args = parser.parse_args()
    here = site.here()
    loaded = [recipe_file.load(path) for path in args.recipes]
    surveys = [(one, survey(here, one, local_offers())) for one in loaded]
    html = nightly.page(here.store, recipes=surveys)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "report.html"
        page.write_text(html, "utf-8")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for suffix, scheme, width, height, scale, engine in (
            ("", "light", args.width, args.height, 1.5, False),
            ("-dark", "dark", args.width, args.height, 1.5, False),
            ("-engine", "light", args.width, args.height, 1.5, True),
            ("-phone", "light", PHONE, 2 * PHONE, 2, False),
        ):
            tab = browser.new_page(
                viewport={"width": width, "height": height},
                device_scale_factor=scale,
                color_scheme="dark" if scheme == "dark" else "light",
            )
            tab.goto(page.as_uri())
            if engine:
                tab.locator(".model .engines a").first.click()
            tab.screenshot(path=args.out.with_name(f"{args.out.stem}{suffix}.png"))
        browser.close()


if __name__ == "__main__":
    main()
