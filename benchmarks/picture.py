"""The report of a store as a picture, taken in Chromium.

    ENGINEFARM_STORE=… python benchmarks/picture.py docs/images/report.png [RECIPE.yaml …]

Writes NAME.png (light) and NAME-dark.png: the top of the page, at 1.5 pixels a point. What is
on it is what that store holds; nothing is made up for it.
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
        for scheme, name in (("light", args.out.name), ("dark", f"{args.out.stem}-dark.png")):
            tab = browser.new_page(
                viewport={"width": args.width, "height": args.height},
                device_scale_factor=1.5,
                color_scheme="dark" if scheme == "dark" else "light",
            )
            tab.goto(page.as_uri())
            tab.screenshot(path=args.out.with_name(name))
        browser.close()


if __name__ == "__main__":
    main()
