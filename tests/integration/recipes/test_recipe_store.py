"""Recipes in a real store: what travels, what is refused, who may bring code to a worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enginefarm import cli
from enginefarm.errors import CorruptBlob, RecipeError, SignatureRejected, StoreMissing
from enginefarm.farm.parameters import recipe_at, recipe_file_at, recipes_in
from enginefarm.planning import stages
from enginefarm.recipes import file as recipe_file
from enginefarm.recipes import recipe_store
from enginefarm.release.gc import Policy, collect
from enginefarm.store import layout, signing
from enginefarm.store.engine_store import EngineStore
from tests import tiny_recipe

CODE = "import json\n\ndef data():\n    yield {}\n"


@pytest.fixture(autouse=True)
def _the_store_is_a_root(store_environment: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEFARM_RECIPE_ROOTS", "@store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "authors" / "tiny"
    tiny_recipe.write(made)
    (made / "__pycache__").mkdir()
    (made / "__pycache__" / "data.pyc").write_bytes(b"no")
    (made / ".secret").write_text("no")
    return made


def test_a_pushed_recipe_is_the_same_recipe_on_another_machine(
    folder: Path, store: EngineStore
) -> None:
    before = stages.export_key(recipe_file.load(folder))
    pushed = recipe_store.push(store, folder)
    assert set(pushed.files) == {"recipe.yaml", "model.onnx", "data.npz"}
    for path in folder.rglob("*.*"):
        path.unlink()
    assert recipe_store.names(store) == ("tiny",)
    (wanted,) = recipes_in("@store")
    found = recipe_at(wanted)
    assert found.name == "tiny"
    assert stages.export_key(found) == before
    assert recipe_file_at("@store/tiny") == recipe_file_at(str(wanted))


def test_pushing_again_replaces_it_and_removing_takes_it_out(
    folder: Path, store: EngineStore
) -> None:
    recipe_store.push(store, folder)
    first = recipe_file_at("@store/tiny")
    tiny_recipe.write(folder, salt="second")
    recipe_store.push(store, folder / "recipe.yaml")
    assert recipe_store.names(store) == ("tiny",)
    assert recipe_at(Path("@store/tiny")).salt == "second"
    assert recipe_file.load(first).salt == ""  # a run that has begun keeps what it began with
    recipe_store.remove(store, "tiny")
    with pytest.raises(StoreMissing, match="no recipe 'tiny'"):
        recipe_file_at("@store/tiny")
    with pytest.raises(RecipeError, match="the store holds no recipe"):
        recipes_in("@store")


def test_no_worker_takes_them_unless_its_roots_name_the_store(
    folder: Path, store: EngineStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe_store.push(store, folder)
    monkeypatch.setenv("ENGINEFARM_RECIPE_ROOTS", str(tmp_path))
    with pytest.raises(RecipeError, match="takes no recipes from the store"):
        recipe_file_at("@store/tiny")


def test_a_worker_with_a_trust_key_takes_only_what_it_signed(
    folder: Path, store: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {name: signing.generate(tmp_path / f"{name}.pem")[0] for name in ("ours", "theirs")}
    monkeypatch.setenv("ENGINEFARM_TRUST", str(keys["ours"]))
    recipe_store.push(store, folder)
    with pytest.raises(SignatureRejected) as refused:
        recipe_file_at("@store/tiny")
    assert refused.value.why == "it is not signed"
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(tmp_path / "theirs.pem"))
    recipe_store.push(store, folder)
    with pytest.raises(SignatureRejected, match="refused"):
        recipe_file_at("@store/tiny")
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(tmp_path / "ours.pem"))
    recipe_store.push(store, folder)
    assert recipe_at(Path("@store/tiny")).name == "tiny"
    # One file swapped under the signature.
    key = "recipes/tiny.json"
    document = json.loads(store.objects.get(key)[0])
    evil = store.put_bytes(b"evil")
    document["files"]["model.onnx"] = evil.model_dump(mode="json")
    store.objects.put(key, json.dumps(document).encode())
    with pytest.raises(SignatureRejected):
        recipe_file_at("@store/tiny")
    document["signatures"][0]["sig"] = "not base64!"
    store.objects.put(key, json.dumps(document).encode())
    with pytest.raises(SignatureRejected):
        recipe_file_at("@store/tiny")


def test_damaged_files_and_documents_are_never_unpacked(folder: Path, store: EngineStore) -> None:
    pushed = recipe_store.push(store, folder)
    blob = layout.blob(pushed.files["recipe.yaml"])
    store.objects.put(blob, b"x" * pushed.files["recipe.yaml"].size_bytes)
    with pytest.raises(CorruptBlob):
        recipe_file_at("@store/tiny")
    document = store.objects.get("recipes/tiny.json")[0]
    store.objects.put("recipes/other.json", document)
    with pytest.raises(CorruptBlob, match="holds another recipe"):
        recipe_file_at("@store/other")
    climbing = document.replace(b'"data.npz"', b'"../data.npz"')
    store.objects.put("recipes/tiny.json", climbing)
    with pytest.raises(CorruptBlob, match="is not a path inside a recipe's folder"):
        recipe_file_at("@store/tiny")


def test_garbage_collection_keeps_a_recipes_files(folder: Path, store: EngineStore) -> None:
    from datetime import UTC, datetime, timedelta

    recipe_store.push(store, folder)
    later = datetime.now(UTC) + timedelta(days=30)
    collect(store, Policy(), delete=True, now=later)
    assert recipe_at(Path("@store/tiny")).name == "tiny"
    recipe_store.remove(store, "tiny")
    gone = collect(store, Policy(), delete=True, now=later).garbage
    assert len([one for one in gone if one.key.startswith(layout.BLOBS)]) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": {"kind": "onnx", "path": "../model.onnx"}}, "outside the recipe's folder"),
        ({"source": {"kind": "onnx", "path": "/srv/model.onnx"}}, "outside the recipe's folder"),
        ({"source": {"kind": "onnx", "path": "lost.onnx"}}, "not in the recipe's folder"),
        ({"plugins": ["lib/plugin.so"]}, "plugins: 'lib/plugin.so' is not in the recipe's folder"),
        (
            {"calibration": {"data": {"path": "../data.npz"}}},
            "data.path: '../data.npz' is outside",
        ),
        (
            {"verification": {"data": {"callable": "data.py:data", "depends": ["labels.csv"]}}},
            "data.depends: 'labels.csv' is not in",
        ),
        (
            {"source": {"kind": "torch", "callable": "tests.tiny_recipe:classifier"}},
            "which no installed package has",
        ),
    ],
)
def test_what_a_recipe_needs_beyond_its_folder_is_refused_at_the_push(
    folder: Path, store: EngineStore, changes: dict[str, object], said: str
) -> None:
    (folder / "data.py").write_text(CODE)
    tiny_recipe.write(folder, **{"precisions": ["fp16"], **changes})
    with pytest.raises(RecipeError) as refused:
        recipe_store.push(store, folder)
    assert said in str(refused.value)
    assert recipe_store.names(store) == ()


def test_code_in_one_file_of_the_folder_travels(folder: Path, store: EngineStore) -> None:
    (folder / "data.py").write_text(CODE)
    (folder / "labels.csv").write_text("1\n")
    data = {"callable": "data.py:data", "depends": ["labels.csv"]}
    tiny_recipe.write(folder, precisions=["fp16"], verification={"data": data})
    assert {"data.py", "labels.csv"} <= set(recipe_store.push(store, folder).files)


def test_a_link_out_of_the_folder_is_refused(
    folder: Path, store: EngineStore, tmp_path: Path
) -> None:
    (tmp_path / "weights.bin").write_bytes(b"w")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(RecipeError, match="a link that leads out of the recipe's folder"):
        recipe_store.push(store, folder)


def test_the_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "push", str(folder)]) == 0
    assert "tiny: 3 files" in capsys.readouterr().out
    assert cli.run(["recipes", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["recipe"]["name"] == "tiny"
    assert cli.run(["recipes", "list"]) == 0
    assert "nobody" in capsys.readouterr().out
    assert cli.run(["recipes", "remove", "tiny"]) == 0
    assert cli.run(["recipes", "remove", "tiny"]) == 43
    assert cli.run(["recipes", "push", str(folder / "nothing")]) == 10
    assert "Traceback" not in capsys.readouterr().err
