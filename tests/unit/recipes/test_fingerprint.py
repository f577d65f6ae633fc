"""What a model depends on, without importing it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import recipe

from enginefarm.documents.data import Data
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.sources import TorchSource
from enginefarm.errors import SourceError
from enginefarm.graph.samples import data
from enginefarm.graph.sources import source
from enginefarm.recipes import import_path


def fingerprint(made: Recipe) -> str:
    return source(made.source.kind).fingerprint(made.source, made.root)


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


def test_code_arguments_checkpoint_and_depends_change_it(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"1")
    (tmp_path / "words.txt").write_text("one")
    base = {"kind": "torch", "callable": "code.py:small", "checkpoint": "w.pt"}
    seen = {fingerprint(recipe(tmp_path, source=base))}

    def changed(**fields: object) -> None:
        found = fingerprint(recipe(tmp_path, source={**base, **fields}))
        assert found not in seen
        seen.add(found)

    changed(callable="code.py:fixed_batch")
    changed(arguments={"channels": 4})
    changed(depends=["words.txt"])
    (tmp_path / "words.txt").write_text("two")
    changed(depends=["words.txt"])
    (tmp_path / "w.pt").write_bytes(b"2")
    changed()
    made = recipe(tmp_path, source=base)
    (tmp_path / "code.py").write_text((tmp_path / "code.py").read_text() + "\n# a comment\n")
    assert fingerprint(made) not in seen


def test_moving_and_renaming_do_not_change_it(tmp_path: Path) -> None:
    first = recipe(folder(tmp_path, "first"))
    second = recipe(folder(tmp_path, "second"))
    (second.root / "code.py").rename(second.root / "other.py")
    renamed = second.source.model_copy(update={"callable": "other.py:small"})
    assert source("torch").fingerprint(renamed, second.root) == fingerprint(first)


def test_a_local_module_that_is_imported_takes_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = folder(tmp_path, "helper_package")
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text("from .deep import WIDTH\n")
    (package / "deep.py").write_text("WIDTH = 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = recipe(tmp_path, code="from helper_package import layers as small\n")
    first = fingerprint(made)
    (package / "deep.py").write_text("WIDTH = 8\n")
    assert fingerprint(made) != first


def test_a_package_takes_part_by_its_version(tmp_path: Path) -> None:
    recipe(tmp_path, code="import numpy.linalg\nfrom skimage import data\nimport os, json\n")
    found = import_path.fingerprint("code.py:data", tmp_path, field="source.callable")
    import numpy
    import skimage

    assert found["numpy"] == f"numpy=={numpy.__version__}"
    assert found["skimage"] == f"scikit-image=={skimage.__version__}"
    assert found.keys() == {"file", "numpy", "skimage"}, "the standard library does not"


def test_nothing_is_imported(tmp_path: Path) -> None:
    recipe(tmp_path, code="raise SystemExit('imported')\nimport torch as small, numpy as data\n")
    script = f"""
import sys
from pathlib import Path
from enginefarm.recipes import file as recipe_file
from enginefarm.graph.samples import data
from enginefarm.graph.sources import source
recipe = recipe_file.load(Path({str(tmp_path)!r}))
source("torch").fingerprint(recipe.source, recipe.root)
data.data_digest(recipe.calibration.data, recipe.root)
print(sorted({{"torch", "onnx", "numpy", "onnxruntime"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_file_or_module_is_named(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    (tmp_path / "code.py").unlink()
    with pytest.raises(SourceError, match=r"'code\.py:small': the file does not exist"):
        fingerprint(made)
    with pytest.raises(SourceError, match="there is no module 'no_such_package'"):
        import_path.fingerprint("no_such_package.models:make", tmp_path, field="source.callable")


def test_data_changes_its_digest_and_its_name_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"one")
    (tmp_path / "b.npz").write_bytes(b"one")
    first = data.data_digest(Data(path="a.npz"), tmp_path)
    assert data.data_digest(Data(path="b.npz"), tmp_path) == first
    (tmp_path / "a.npz").write_bytes(b"two")
    assert data.data_digest(Data(path="a.npz"), tmp_path) != first
    (tmp_path / "code.py").write_text("def data(seed): ...")
    made = data.data_digest(Data(callable="code.py:data"), tmp_path)
    changed = Data(callable="code.py:data", arguments={"size": 3})
    assert data.data_digest(changed, tmp_path) != made


def test_folders_that_arguments_or_depends_name_are_in_the_digest(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def data(seed): ...")
    (tmp_path / "images" / "more").mkdir(parents=True)
    file = tmp_path / "images" / "more" / "a.npy"
    kinds = (
        Data(callable="code.py:data", arguments={"folder": "images"}),
        Data(callable="code.py:data", arguments={"files": ["images/more/a.npy"]}),
        Data(callable="code.py:data", depends=("images",)),
    )
    seen: list[list[str]] = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        seen.append([data.data_digest(one, tmp_path) for one in kinds])
        weights = TorchSource(callable="code.py:data", arguments={"weights": "images"})
        seen[-1].append(source("torch").fingerprint(weights, tmp_path))
        depends = TorchSource(callable="code.py:data", depends=("images",))
        seen[-1].append(source("torch").fingerprint(depends, tmp_path))
    assert all(before != after for before, after in zip(*seen, strict=True))
    around = Data(callable="code.py:data", arguments={"folder": ".."})
    assert data.data_digest(around, tmp_path), "not every file around the recipe is read"
