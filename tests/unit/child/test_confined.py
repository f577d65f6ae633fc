"""What a recipe or a URL names must not lead out of where it may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginefarm.errors import SourceError
from enginefarm.recipes import import_path
from enginefarm.store.sources import PresignedUrl

CODE = "def make():\n    return 1\n"


@pytest.fixture
def recipe_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ENGINEFARM_RECIPE_ROOTS", raising=False)
    folder = tmp_path / "recipes" / "one"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(CODE)
    (tmp_path / "outside.py").write_text(CODE)
    return folder


def test_code_beside_the_recipe_runs(recipe_folder: Path) -> None:
    assert import_path.load("model.py:make", recipe_folder, field="source.callable")() == 1


@pytest.mark.parametrize(
    "where", ["../../outside.py:make", "link.py:make", "a/../../../outside.py:make"]
)
def test_code_from_elsewhere_is_neither_run_nor_read(recipe_folder: Path, where: str) -> None:
    (recipe_folder / "link.py").symlink_to(recipe_folder.parents[1] / "outside.py")
    (recipe_folder / "a").mkdir()
    for use in (import_path.load, import_path.fingerprint):
        with pytest.raises(SourceError, match="outside the folders"):
            use(where, recipe_folder, field="source.callable")


def test_a_recipe_root_may_hold_shared_code(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEFARM_RECIPE_ROOTS", str(recipe_folder.parents[1]))
    assert import_path.load("../../outside.py:make", recipe_folder, field="source.callable")() == 1


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../../x", "/etc/passwd", ".bashrc", "a\x00b", "a" * 300]
)
def test_a_url_cannot_name_a_path(name: str) -> None:
    url = f"https://host.example/x#sha256={'0' * 64}&size=1&name={name}"
    assert PresignedUrl.parse(url).name == "0" * 64


def test_a_plain_name_is_kept() -> None:
    url = f"https://host.example/x#sha256={'0' * 64}&size=1&name=tiny-t4-int8.plan"
    assert PresignedUrl.parse(url).name == "tiny-t4-int8.plan"
