"""Names that a recipe gives for code, checked without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginefarm.errors import SourceError
from enginefarm.recipes import import_path

KNOWN = {
    "a function": "def build(): ...",
    "a class": "class build: ...",
    "an assignment": "build = lambda: 1",
    "a part of a tuple": "a, build = 1, 2",
    "an import": "from os import path as build",
    "behind a condition": "if True:\n    def build(): ...\nelse:\n    build = None",
    "in a try": "try:\n    import build\nexcept ImportError:\n    build = None",
    "a loop": "for build in (1, 2): pass",
    "a with": "with open(__file__) as build: pass",
    "a walrus": "(build := 1)",
    "from a function": "def make():\n    global build\n    build = 1\nmake()",
    "a star": "from os.path import *",
    "a module's own lookup": "def __getattr__(name): return 1",
    "by hand": "globals()['bu' + 'ild'] = 1",
    "broken code, which the load names": "def build(:",
}


@pytest.mark.parametrize("code", KNOWN.values(), ids=KNOWN)
def test_what_a_file_may_have_is_not_refused(tmp_path: Path, code: str) -> None:
    (tmp_path / "model.py").write_text(code)
    assert "file" in import_path.fingerprint("model.py:build.inner", tmp_path, field="source")


@pytest.mark.parametrize("field", ["source.callable", "verification.data.callable"])
def test_a_misspelt_name_is_found_before_anything_runs(tmp_path: Path, field: str) -> None:
    (tmp_path / "model.py").write_text("def build():\n    biuld = 1\nraise SystemExit(3)")
    with pytest.raises(SourceError, match=rf"{field}: 'model.py:biuld': model.py has noth") as told:
        import_path.fingerprint("model.py:biuld", tmp_path, field=field)
    assert told.value.why == "it defines build"
    assert told.value.fix == "did you mean build?"


def test_an_empty_file_has_no_names(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    with pytest.raises(SourceError) as told:
        import_path.fingerprint("model.py:build", tmp_path, field="source.callable")
    assert told.value.why == "it defines no names"
