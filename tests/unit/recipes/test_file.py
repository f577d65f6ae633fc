"""A recipe's YAML: every mistake named by its field, in one error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
            "source.callable: 'model.py' is not allowed; write `file.py:name`",
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
        (
            {"inputs": [{"name": "x", "shape": [-1, 3]}]},
            "inputs[0].shape[0]: -1 is not a dim; write",
        ),
        ({"precisions": ["int4"]}, "precisions[0]: 'int4' is not known; use one of: 'fp32'"),
        ({"calibration": None}, "precisions: int8 and fp8 need `calibration`"),
        ({"gpus": ["t4", "t4"]}, "gpus: t4 is listed twice; keep one"),
        (
            {"outputs": ["scores", "x"]},
            "outputs: x is the name of an input too; an engine has one tensor of each name: "
            "give the output another one",
        ),
        ({"accuracy": {"int8": {"min_cosin": 1}}}, "accuracy.int8.min_cosin: no such field"),
        ({"acuracy": {}}, "acuracy: no such field; did you mean accuracy?"),
        (
            {"source": {"kind": "torch", "callable": "a.py:b", "chekpoint": "w.pt"}},
            "source.chekpoint: no such field; did you mean checkpoint?",
        ),
        (
            {"accuracy": {"fp16": {"max_top1_drop_points": 1}}},
            "accuracy.fp16.max_top1_drop_points: it limits a figure that is not measured",
        ),
        (
            {"accuracy": {"fp16": {"min_top1_agreement": 1}}, "verification": {}},
            "accuracy.fp16.min_top1_agreement: it limits a figure that is not measured",
        ),
        ({"verification": {"class_scores": ["y"]}}, "no output is called y; outputs are scores"),
        ({"name": "../up"}, "name: '../up' is not allowed"),
    ],
)
def test_a_mistake_names_its_field_and_the_remedy(changes: dict, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(**changes)
    assert line in str(caught.value)
    assert str(caught.value).startswith("recipe: 1 mistake\n"), "and nothing else is blamed"


BASE = """name: m
source: { kind: torch, callable: "model.py:build", arguments: { width: 8 } }
inputs:
  - { name: x, shape: [batch, 3, 16, 16] }
profiles:
  - dims: { batch: [1, 4, 8] }
gpus: [t4]
allow_skip: false
calibration: { data: { path: c.npz }, batches: 8 }
"""


def changed(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (changed("[1, 4, 8]", "[1, 4, 010]"), "line 6: profiles[0].dims.batch.max: should be a wh"),
        (changed("[1, 4, 8]", "[01, 4, 8]"), "line 6: profiles[0].dims.batch.min: should be a who"),
        (changed("[1, 4, 8]", "[1, 4, 1_000]"), "line 6: profiles[0].dims.batch.max: should be a"),
        (changed("[1, 4, 8]", "[1, 4, 0x10]"), "line 6: profiles[0].dims.batch.max: should be a"),
        (changed("[1, 4, 8]", "[1, 4.0, 8]"), "line 6: profiles[0].dims.batch.opt: should be a wh"),
        (changed("[1, 4, 8]", '[1, "4", 8]'), "line 6: profiles[0].dims.batch.opt: should be a wh"),
        (changed("[1, 4, 8]", "[true, 4, 8]"), "line 6: profiles[0].dims.batch.min: should be a w"),
        (changed("[1, 4, 8]", "[1, 8]"), "line 6: profiles[0].dims.batch: write one number, or"),
        (changed("[batch, 3", "[batch, 03"), "line 4: inputs[0].shape[1]: '03' is not a dim"),
        (changed("[batch, 3", "[batch, yes"), "line 6: profiles[0] (default): dim 'yes' of input"),
        (changed("batches: 8", "batches: 1:30"), "line 9: calibration.batches: should be a whole"),
        (changed("batches: 8", "batches: yes"), "line 9: calibration.batches: should be a whole"),
        (changed("skip: false", "skip: no"), "line 8: allow_skip: should be true or false; it is"),
        (changed("skip: false", "skip: 0"), "line 8: allow_skip: should be true or false; it is 0"),
        (changed("width: 8", "width: 010"), "line 2: source.arguments.width: '010' can be read in"),
        (changed("width: 8", "width: [no]"), "line 2: source.arguments.width[0]: 'no' can be read"),
        (changed("width: 8", "8: 8"), "line 2: '8' is not text, and a key must be text"),
        (changed("width: 8", "a: 1, a: 2"), "line 2: `a` is written twice"),
        (changed("width: 8", "width: !!binary aGk="), "line 2: the tag 'binary' is not allowed"),
        (changed("width: 8", 'width: "\\ud800"'), "line 2: the character U+D800 is not allowed"),
        (changed("name: m", "name: m\x1b"), "line 1: the character U+001B is not allowed"),
        (BASE + "accuracy: { fp16: { min_cosine: .nan } }", "line 10: accuracy.fp16.min_cosine: "),
        (BASE + "salt: 1" + 5000 * "0", "line 10: the number has 5,001 characters"),
        (BASE + "salt: 1.10", "line 10: salt: should be text; it is 1.1; put it in quotes"),
        (BASE + "---\nname: second\n", "line 10: the text is not valid YAML"),
        (BASE + "salt: *nowhere\n", "line 10: the text is not valid YAML"),
        (BASE + "outputs: &all [*all]\n", "line 10: this value contains itself"),
        (changed("gpus: [t4]\n", ""), "line 1: gpus: missing; add it"),
        (changed("path: c.npz", "pth: c.npz"), "line 9: calibration.data.pth: no such field"),
    ],
)
def test_a_mistake_names_its_line(text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_file.parse(text)
    assert says in str(caught.value)


def test_plain_words_mean_what_yaml_1_2_and_the_field_say() -> None:
    text = changed("width: 8", 'width: "010", deep: null, rate: 1e-3, on_: True')
    made = recipe_file.parse(text + "outputs: [on, no, 012, 2024-01-01]\nsalt: '1.10'\n")
    assert made.source.arguments == {"width": "010", "deep": None, "rate": 1e-3, "on_": True}  # type: ignore[union-attr]
    assert made.outputs == ("on", "no", "012", "2024-01-01")
    assert made.salt == "1.10"


def test_aliases_and_merges_are_read_and_bounded() -> None:
    shared = changed("calibration: {", "calibration: &c {")
    made = recipe_file.parse(shared + "verification: { <<: *c, batches: 2 }\n")
    assert made.verification.data == made.calibration.data  # type: ignore[union-attr]
    assert made.verification.batches == 2
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 9)]
    with pytest.raises(RecipeError, match=r"the document holds more than 100,000 values"):
        recipe_file.parse("\n".join(rows))


def test_a_list_of_20_000_gpus_is_one_error() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_file.parse(changed("[t4]", f"[{', '.join(['t4'] * 20_000)}]"))
    assert str(caught.value) == ("recipe: 1 mistake\n  line 7: gpus: t4 is listed twice; keep one")
    with pytest.raises(RecipeError) as caught:
        recipe_file.parse(changed("[t4]", f"[{', '.join(['T4'] * 20_000)}]"))
    assert "20,000 mistakes" in str(caught.value)
    assert str(caught.value).count("\n") == 21
    assert "… and 19,980 more" in str(caught.value)


def test_what_is_not_a_regular_file_is_not_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "recipe.yaml"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises(RecipeError, match="not a regular file"):
            recipe_file.load(path)


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
        ("!!python/object/apply:os.system ['true']", "is not allowed"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_text_that_is_no_recipe_is_refused(text: str, what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_file.parse(text)
    assert what in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml cannot be read"):
        recipe_file.load(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="line 1 is not text"):
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


def test_a_link_that_was_copied_as_text_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("../shared/recipe.yaml")
    with pytest.raises(RecipeError, match="the text of a link to"):
        recipe_file.load(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "ö" * 200, "a/" * 3000 + "m"])
@pytest.mark.parametrize("field", ["source.path", "depends", "callable", "plugins"])
def test_a_name_that_no_file_can_have_is_named_with_its_field(
    tmp_path: Path, name: str, field: str
) -> None:
    changed: dict[str, Any] = {
        "source.path": {"source": {"kind": "onnx", "path": name}},
        "depends": {"source": {"kind": "torch", "callable": "m.py:f", "depends": [name]}},
        "callable": {"source": {"kind": "torch", "callable": f"{name}:f"}},
        "plugins": {"plugins": [name]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document(**changed[field]), width=10**6))
    with pytest.raises(RecipeError, match=field.rpartition(".")[2]):
        recipe_file.load(path)
