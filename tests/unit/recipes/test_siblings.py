"""Modules beside a recipe's file: imported, keyed, and never another recipe's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from enginefarm.errors import SourceError
from enginefarm.recipes import import_path


def recipe_folder(folder: Path, value: int) -> Path:
    (folder / "parts").mkdir(parents=True)
    (folder / "model.py").write_text("from layers import made\n\ndef build():\n    return made()\n")
    (folder / "layers.py").write_text(
        "from parts.deep import VALUE\n\ndef made():\n    return VALUE\n"
    )
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "deep.py").write_text(f"VALUE = {value}\n")
    return folder


def build(root: Path) -> int:
    return import_path.load("model.py:build", root, field="source.callable")()


def key(root: Path) -> dict[str, str]:
    return import_path.fingerprint("model.py:build", root, field="source.callable")


def test_two_recipes_with_a_module_of_one_name_each_get_their_own(tmp_path: Path) -> None:
    one, two = recipe_folder(tmp_path / "one", 1), recipe_folder(tmp_path / "two", 2)
    before = list(sys.path)
    assert (build(one), build(two), build(one)) == (1, 2, 1)
    assert sys.path == before
    (one / "parts" / "deep.py").write_text("VALUE = 12345\n")
    assert build(one) == 12345, "and what was edited is read again"


def test_every_module_beside_the_file_is_in_the_key(tmp_path: Path) -> None:
    root = recipe_folder(tmp_path / "one", 1)
    before = key(root)
    assert {"file", "layers", "parts", "parts.deep"} <= before.keys()
    for changed in ("layers.py", "parts/__init__.py", "parts/deep.py"):
        (root / changed).write_text((root / changed).read_text() + "# another line\n")
        after = key(root)
        assert after != before, changed
        before = after


def test_the_standard_library_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "fractions.py").write_text("raise SystemError\n")
    (tmp_path / "model.py").write_text("import fractions\nbuild = fractions.Fraction\n")
    assert build(tmp_path) == 0
    assert set(key(tmp_path)) == {"file"}


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    root = recipe_folder(tmp_path / "one", 1)
    (tmp_path / "outside.py").write_text("def made():\n    return 7\n")
    (root / "layers.py").unlink()
    (root / "layers.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(SourceError, match="cannot be imported"):
        build(root)
