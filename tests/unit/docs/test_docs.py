"""The documentation agrees with the code that it describes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from enginefarm.documents import gpus
from enginefarm.documents.sources import SOURCES
from enginefarm.documents.thresholds import DEFAULT_BUDGETS
from enginefarm.names import TOOLCHAINS

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["recipe.md", "cli.md", "errors.md", "gpus.md"])
def test_pages_are_as_the_code_says(generate: ModuleType, name: str) -> None:
    written = (DOCS / name).read_text("utf-8")
    assert written == generate.PAGES[name](), "stale: run python docs/generate.py"


def test_every_gpu_and_precision_is_there() -> None:
    page = (DOCS / "gpus.md").read_text("utf-8")
    for label in gpus.table():
        assert f"| {label} |" in page
    for precision in DEFAULT_BUDGETS:
        assert f"| {precision} |" in page


def test_every_error_says_when() -> None:
    for line in (DOCS / "errors.md").read_text("utf-8").splitlines():
        cells = line.split("|")
        if len(cells) > 5 and cells[1].strip().isdigit() and cells[3].strip() == "EnginefarmError":
            assert cells[2].strip()


def test_contributing_names_the_tables_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for folder in ("graph/precisions", "toolchains", "graph/sources"):
        assert f"enginefarm/{folder}/NAME.py" in text
    for code in (*(row.code for row in TOOLCHAINS.values()), *SOURCES.values()):
        module = code.partition(":")[0]
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "#", "mailto:")):
            continue
        assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_environment_variable_is_there_and_none_that_is_not_read() -> None:
    code = [
        file.read_text("utf-8")
        for folder in ("enginefarm", "flows", "tasks")
        for file in (ROOT / folder).rglob("*.py")
    ]
    read = {name for text in code for name in re.findall(r"ENGINEFARM_[A-Z_]+[A-Z]", text)}
    page = (DOCS / "environment.md").read_text("utf-8")
    assert set(re.findall(r"`(ENGINEFARM_[A-Z_]+)`", page)) == read


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    for page in DOCS.glob("*.md"):
        if page.name != "README.md":
            assert f"({page.name})" in index, page.name


def test_files_that_the_pages_name_are_there() -> None:
    for page in DOCS.glob("*.md"):
        for named in re.findall(
            r"`((?:infra|tests|flows|benchmarks|docs)/[\w./-]+)`", page.read_text("utf-8")
        ):
            assert (ROOT / named).exists(), f"{page.name}: {named}"
