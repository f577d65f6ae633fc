"""A recipe's YAML: every mistake named by its field, in one error."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from tiny_models import document

from enginefarm.errors import RecipeError
from enginefarm.recipes import file as recipe_file

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*/recipe.yaml"))


def parse(**changes: object):
    return recipe_file.parse(yaml.safe_dump(document(**changes)))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_every_example_is_a_recipe(path: Path) -> None:
    recipe = recipe_file.load(path)
    assert recipe.root == path.parent
    assert recipe_file.load(path.parent) == recipe, "a folder stands for its recipe.yaml"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"source": {"kind": "tensorflow"}}, "source.kind: 'tensorflow' is not known; use one of"),
        ({"source": {"callable": "a.py:b"}}, "source.kind: missing"),
        (
            {"source": {"kind": "torch", "callable": "model.py"}},
            "source.callable: 'model.py' does not fit; write `file.py:name`",
        ),
        (
            {"profiles": [{"dims": {"batch": [8, 4, 1]}}]},
            "profiles[0].dims.batch: min ≤ opt ≤ max does not hold: 8, 4, 1",
        ),
        ({"profiles": [{"dims": {"batch": [0, 4, 8]}}]}, "profiles[0].dims.batch.min: should be"),
        (
            {"profiles": [{"dims": {"batch": [1, 2, 2**40]}}]},
            "profiles[0].dims.batch.max: should be less",
        ),
        (
            {"profiles": [{"dims": {}}]},
            "profiles[0] (default): dim 'batch' of input 'x' is dynamic and has no range; add",
        ),
        ({"profiles": [{"dims": {"batch": 4, "time": 4}}]}, "no input has a dim 'time'"),
        ({"inputs": [{"name": "x", "shape": [-1, 3]}]}, "inputs[0].shape[0]: should be greater"),
        ({"precisions": ["int4"]}, "precisions[0]: 'int4' is not known; use one of: 'fp32'"),
        ({"calibration": None}, "precisions: int8 and fp8 need `calibration`"),
        ({"gpus": ["t4", "t4"]}, "gpus: t4 is listed twice; keep one"),
        ({"accuracy": {"int8": {"min_cosin": 1}}}, "accuracy.int8.min_cosin: no such field"),
        ({"verification": {"class_scores": ["y"]}}, "no output is called y; outputs are scores"),
        ({"name": "../up"}, "name: '../up' does not fit"),
    ],
)
def test_a_mistake_names_its_field_and_the_remedy(changes: dict, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(**changes)
    assert line in str(caught.value)
    assert str(caught.value).startswith("recipe: 1 mistake\n"), "and nothing else is blamed"


def test_all_mistakes_come_in_one_error() -> None:
    with pytest.raises(RecipeError) as caught:
        parse(gpus=[], salt=3, bogus=1)
    text = str(caught.value)
    assert "3 mistakes" in text
    assert all(field in text for field in ("gpus:", "salt:", "bogus:"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "it holds nothing".removeprefix("it ")),
        ("just words", "holds str"),
        ("name: a\nname: b\n", "line 2: `name` is written twice"),
        ("profiles:\n  - dims: {batch: 1, batch: 2}\n", "line 2: `batch` is written twice"),
        ("gpus: [t4\nname: x", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_text_that_is_no_recipe_is_refused(text: str, what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_file.parse(text)
    assert what in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml: cannot be read"):
        recipe_file.load(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file"):
        recipe_file.load(tmp_path)


def test_the_schema_for_editors_accepts_what_recipes_write() -> None:
    schema = recipe_file.json_schema()
    dims = schema["$defs"]["Profile"]["properties"]["dims"]["additionalProperties"]
    assert {"type": "integer"} in dims["anyOf"], "`batch: 8`"
    assert any(form.get("type") == "array" for form in dims["anyOf"]), "`batch: [1, 8, 32]`"
    assert json.loads(json.dumps(schema)) == schema
    validator = jsonschema.Draft202012Validator(schema)
    for path in EXAMPLES:
        validator.validate(yaml.safe_load(path.read_text()))
    for wrong in ({"name": "x"}, document(bogus=1), document(precisions=["int4"])):
        assert not validator.is_valid(wrong)
