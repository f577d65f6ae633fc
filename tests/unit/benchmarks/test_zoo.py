"""The zoo: what its second opinion sees in a published graph, and how the table says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from benchmarks import zoo, zoo_check, zoo_export, zoo_table
from benchmarks.steps import NotRun, Steps
from benchmarks.zoo_judge import Figures, decibel
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import Budget
from enginefarm.graph.samples import data
from enginefarm.recipes import file as recipe_file
from tests import toy_graphs

FP16 = Budget(min_cosine=0.999, max_relative_l2=0.02)


def graph(path: Path, nodes: list[Any], dtype: int, weights: dict[str, Any] | None = None) -> Path:
    """A graph from x to y, both of that dtype, of any rank."""
    made = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", dtype, ["n", 2])],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_resize_to_sizes_that_the_graph_computes_is_run(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["like"], ["sizes"]),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], "up", mode="nearest"),
    ]
    shape = [1, 1, None, None]
    x, like, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "like", "y")
    )
    made = helper.make_graph(nodes, "one", [x, like], [y])
    opsets = [helper.make_opsetid("", 20)]
    save(helper.make_model(made, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    steps = Steps(tmp_path / "m.onnx")
    for size in (4, 6):
        feeds = {"x": np.ones((1, 1, 2, 2), "f"), "like": np.ones((1, 1, size, 4), "f")}
        assert steps.run(feeds)["y"].shape == (1, 1, size, 4)


def test_what_overflows_fp16_between_two_nodes_is_seen(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Sqrt", ["square"], ["y"]),
    ]
    path = graph(tmp_path / "m.onnx", nodes, TensorProto.FLOAT16)
    x = np.array([[300, 2]], np.float16)
    assert np.array_equal(Steps(path).run({"x": x})["y"], [[np.inf, 2]])
    assert np.array_equal(Steps(path, rounded=False).run({"x": x})["y"], [[300, 2]])


def test_results_are_those_of_numpys_float16(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(0, 1, 2).astype(np.float16)
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["y"]),
    ]
    path = graph(tmp_path / "m.onnx", nodes, TensorProto.FLOAT16, {"w": weight})
    x = np.random.default_rng(1).normal(0, 1, (50, 2)).astype(np.float16)
    wanted = np.exp((x * weight).astype(np.float32)).astype(np.float16) + x
    assert np.array_equal(Steps(path).run({"x": x})["y"], wanted.astype(np.float32))


@pytest.mark.parametrize("taken", [True, False])
def test_each_branch_of_an_if_runs_with_its_own_numbers(tmp_path: Path, taken: bool) -> None:
    def branch(factor: float) -> Any:
        value = numpy_helper.from_array(np.array(factor, np.float16), "f")
        output = helper.make_tensor_value_info("z", TensorProto.FLOAT16, None)
        nodes = [helper.make_node("Mul", ["x", "f"], ["z"])]
        return helper.make_graph(nodes, "b", [], [output], [value])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch(2), else_branch=branch(3))
    path = graph(tmp_path / "m.onnx", [node], TensorProto.FLOAT16, {"c": np.array(taken)})
    made = Steps(path).run({"x": np.ones((1, 2), np.float16)})["y"]
    assert made.tolist() == [[2, 2]] if taken else [[3, 3]]


def test_fp8_is_rounded_by_numpy(tmp_path: Path) -> None:
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "s")
    made = helper.make_graph(nodes, "one", inputs, outputs, [scale, zero])
    path = tmp_path / "m.onnx"
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    # 17 is between 16 and 18, and ties go to the even one; 448 is the largest there is.
    found = Steps(path).run({"x": np.array([[8.5, 999]], np.float32)})["y"]
    assert found.tolist() == [[8.0, 224.0]]


LOOP = """m (float16[n, 2] x) => (float16[n, 2] y, float16[s, n, 2] rows) <int64 most = {5}> {
    y, rows = Loop <body = step (int64 i, bool go, float16[n, 2] at)
        => (bool on, float16[n, 2] next, float16[n, 2] square) {
        square = Mul (at, at)
        next = Add (at, x)
        two = Constant <value_int = 2> ()
        on = Less (i, two)
    }> (most, , x)
}"""
SCAN = """m (float16[2, n] x) => (float16[2] last, float16[2, s] sums) <float16[2] start = {0, 0}> {
    last, sums = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
        scan_output_axes = [1], scan_output_directions = [1],
        body = step (float16[2] at, float16[2] column) => (float16[2] next, float16[2] sum) {
        next = Add (at, column)
        sum = Identity (next)
    }> (start, x)
}"""


def test_each_step_of_a_loop_is_rounded(tmp_path: Path) -> None:
    save(toy_graphs.made(LOOP), tmp_path / "m.onnx")
    found = Steps(tmp_path / "m.onnx").run({"x": np.array([[150, 1]], np.float16)})
    assert found["y"].tolist() == [[600, 4]], "the condition stops it after three steps of five"
    assert found["rows"].tolist() == [[[22496, 1]], [[np.inf, 4]], [[np.inf, 9]]]


def test_a_scan_reads_and_writes_along_its_axes_and_directions(tmp_path: Path) -> None:
    save(toy_graphs.made(SCAN), tmp_path / "m.onnx")
    x = np.array([[1, 2048, 3], [4, 5, 6]], np.float16)
    found = Steps(tmp_path / "m.onnx").run({"x": x})
    assert found["last"].tolist() == [2052, 15], "2051 is no FP16, and 2053 is none either"
    assert found["sums"].tolist() == [[2052, 2052, 3], [15, 11, 6]]
    plain = toy_graphs.run(tmp_path / "m.onnx", {"x": np.ones((2, 3), np.float16)})
    same = Steps(tmp_path / "m.onnx").run({"x": np.ones((2, 3), np.float16)})
    assert all(np.array_equal(plain[name], same[name]) for name in plain)


def test_a_loop_without_a_step_is_not_run_and_named(tmp_path: Path) -> None:
    save(toy_graphs.made(LOOP.replace("{5}", "{0}")), tmp_path / "m.onnx")
    with pytest.raises(NotRun, match="has no step"):
        Steps(tmp_path / "m.onnx").run({"x": np.ones((1, 2), np.float16)})


@pytest.mark.parametrize("block", [0, 2])
def test_weights_of_four_bits_are_dequantized_by_numpy(tmp_path: Path, block: int) -> None:
    weights = np.array([[-8, 7], [1, 2], [3, -4], [5, 6]], np.float32)
    scales = np.array([[1, 2], [0.5, 0.25]] if block else [1, 0.5], np.float32)
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0 if block else 1)
    if block:
        node.attribute.append(helper.make_attribute("block_size", block))
    four = helper.make_tensor("q", TensorProto.INT4, [4, 2], weights.astype(int).flatten())
    made = helper.make_graph(
        [node, helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [four, numpy_helper.from_array(scales, "s")],
    )
    path = tmp_path / "m.onnx"
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    wanted = x @ (weights * (np.repeat(scales, 2, 0) if block else scales))
    assert np.array_equal(Steps(path).run({"x": x})["y"], wanted)
    assert np.array_equal(toy_graphs.result(path, x), wanted), "as ONNX Runtime does"


def judged(wanted: Any, made: Any, **how: Any) -> list[str]:
    figures = Figures(**how)
    figures.add("y", np.asarray(wanted, np.float32), np.asarray(made, np.float32), "seed 1")
    return figures.verdict(FP16)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ([[1, 2], [3, 4]], ""),
        ([[1.01, 2], [3, 4]], ""),
        ([[1.5, 2], [3, 4]], "relative L2 0.0913, above 0.04"),
        ([[1, np.nan], [3, 4]], "1 values are not finite"),
        ([[1, 2]], "shape (1, 2), not (2, 2)"),
    ],
)
def test_a_graph_disagrees_beyond_twice_its_budget(made: Any, why: str) -> None:
    found = judged([[1, 2], [3, 4]], made)
    assert bool(found) == bool(why)
    assert why in "; ".join(found)


def test_a_ruined_sample_among_large_ones_is_seen() -> None:
    wanted = np.full((100, 4), 10.0)
    wanted[0] = 2
    made = wanted.copy()
    made[0] = [2, 2, 2, 3]
    assert judged(wanted, made) == ["relative L2 of the worst sample 0.25, above 0.12"]


def test_detections_that_are_lost_are_seen_behind_correct_boxes() -> None:
    """nudenet in INT8: a cosine of .9997, and half of its detections gone."""
    wanted = np.zeros((1, 6, 10))
    wanted[0, 0] = np.arange(10) * 100 + 50
    wanted[0, 2:4] = 50
    wanted[0, 4] = 0.9
    made = wanted.copy()
    made[0, 4, :5] = 0.05
    assert judged(wanted, made, found="y") == ["5 of 10 detections are kept, and it has 5"]
    assert judged(wanted, wanted, found="y") == []


def test_infinities_that_fp32_has_too_are_no_damage() -> None:
    assert judged([[np.inf, 1]], [[np.inf, 1]]) == []
    assert judged([[np.inf, 1]], [[7, 1]]) != []


@pytest.mark.parametrize(("relative", "db"), [(0.01, 40.0), (0.0, 999.0), (float("inf"), None)])
def test_figures_are_decibels(relative: float, db: float | None) -> None:
    assert decibel(relative) == db


@pytest.mark.parametrize("name", zoo.models())
def test_every_row_is_a_recipe(name: str) -> None:
    row = zoo.models()[name]
    made = Recipe.model_validate(zoo.recipe(name, row))
    assert made.name == name
    assert ("wheel" in row) == ("files" in row)
    assert set(row.get("files", {})) >= ({"model.onnx"} if "model" not in row else set())


def test_a_models_folder_has_all_that_its_recipe_names(tmp_path: Path) -> None:
    """Its code too, one file of which imports another."""
    (tmp_path / "parts" / "silero-static").mkdir(parents=True)
    (tmp_path / "parts" / "silero-static" / "model.onnx").write_bytes(b"weights")
    row = zoo.models()["silero-static"]
    folder = zoo.placed("silero-static", row, tmp_path / "made", tmp_path / "parts")
    found = recipe_file.load(folder / "recipe.yaml")
    assert (folder / "model.onnx").read_bytes() == b"weights"
    how = {"root": found.root, "inputs": found.inputs, "batches": 1, "batch_size": 1}
    one, other, again = (
        next(data.batches(found.verification_data, **how, seed=seed))["input"] for seed in (1, 2, 1)
    )
    assert one.shape == (1, 576)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_cell_says_what_each_gpu_has() -> None:
    def engine(gpu: str, **said: Any) -> dict[str, Any]:
        return {"gpu": gpu, "precision": "fp16", "status": "built", "commit": "c", **said}

    reasons: dict[str, int] = {}
    found = {
        "engines": {
            "l4/fp16": engine("l4", graph="g"),
            "a100/fp16": engine("a100", graph="g"),
            "t4/fp16": engine("t4", status="failed", reason="t4 has\nno X | Y"),
        },
        "graphs": {"g": {"db": 41.2, "disagrees": []}},
    }
    assert zoo_table.cell(found, "fp16", reasons) == "t4: no (1); a100, l4: 41.2 dB"
    assert reasons == {"GPU has no X / Y": 1}
    assert zoo_table.cell(found, "bf16", reasons) == "not run"
    found["graphs"]["g"]["disagrees"] = ["relative L2 2"]
    assert "41.2 dB **disagrees**" in zoo_table.cell(found, "fp16", reasons)
    assert [name for name, _ in zoo_table.wrong({"m": found})] == ["m"]


def test_what_nobody_judged_or_tried_is_not_counted_as_fine() -> None:
    def engine(graph: str) -> dict[str, Any]:
        return {"gpu": "l4", "precision": graph, "status": "built", "commit": "c", "graph": graph}

    results = {
        "magika": {
            "engines": {"l4/fp16": engine("a"), "l4/bf16": engine("b"), "l4/int8": engine("c")},
            "graphs": {
                "a": {"precision": "fp16", "db": 50, "disagrees": []},
                "b": {"precision": "bf16", "not_judged": "Loop"},
            },
        }
    }
    page = zoo_table.table(results, zoo.models())
    assert "3 engines are published, from 3 graphs. 1 of these graphs were judged here" in page
    assert "| l4 | 0 of 0 files that it was given | 1 of 1 models that were run | 0 of 0 |" in page
    assert page.count("| magika | not run | t4, a100: not run; l4: 50 dB |") == 1


def test_what_has_results_is_not_run_again(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[list[str]] = []

    def build(folder: Path, scratch: Path, gpus: list[str], precisions: list[str]) -> Any:
        asked.append(precisions)
        failed = {"gpu": gpus[0], "status": "failed", "reason": "r", "engine_digest": ""}
        return [{**failed, "precision": one} for one in precisions]

    monkeypatch.setattr(zoo, "build", build)
    monkeypatch.chdir(tmp_path)
    line = ["--only", "ramp", "--gpus", "l4", "--precisions", "fp16", "--scratch", str(tmp_path)]
    for more in ([], [], ["--mended"], ["--precisions", "fp16,bf16"]):
        zoo.work("range-int-cast", zoo.parse([*line, "--no-bare", *more]))
    assert asked == [["fp16"], ["fp16"], ["bf16"]]
    kept = json.loads((tmp_path / "results" / "range-int-cast.json").read_text())
    assert set(kept["engines"]) == {"l4/fp16", "l4/bf16"}


def test_the_cosine_is_that_of_the_worst_output_over_everything_that_was_added() -> None:
    figures = Figures()
    wanted, made = np.array([[1.0, 0, 0]]), np.array([[1.0, 1, 0]])
    figures.add("good", wanted, wanted, "batch 0")
    figures.add("bad", wanted, made, "batch 0")
    figures.add("bad", made, made, "batch 1")
    whole = float(np.vdot([[wanted], [made]], [[made], [made]]))
    assert figures.cosine == pytest.approx(whole / (3**0.5 * 4**0.5))


def test_a_pytorch_model_that_was_exported_elsewhere_is_a_recipe_of_its_file(
    tmp_path: Path,
) -> None:
    row = zoo.models()["hf-bert"]
    assert zoo.as_file("hf-bert", row, tmp_path) is row
    (tmp_path / "hf-bert").mkdir()
    (tmp_path / "hf-bert" / "model.onnx").write_bytes(b"graph")
    found = zoo.as_file("hf-bert", row, tmp_path)
    assert "needs" not in found
    assert zoo.recipe("hf-bert", found)["source"] == {"kind": "onnx", "path": "model.onnx"}
    folder = zoo.placed("hf-bert", found, tmp_path / "scratch", tmp_path)
    assert (folder / "model.onnx").read_bytes() == b"graph"


def test_what_fp32_in_another_order_costs_a_model_is_no_disagreement() -> None:
    figures = Figures()
    wanted = np.ones((1, 4))
    figures.add("y", wanted, wanted + 1e-3, "batch 0")
    exact = Budget(min_cosine=0.999999, max_relative_l2=1e-4)
    assert figures.verdict(exact)
    assert figures.verdict(exact, 1e-3, 1e-3) == []
    assert figures.verdict(exact, 1e-4, 1e-4)


def test_a_pytorch_model_is_written_and_is_its_own_judge(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # the recipe's code is found from where a build runs
    row, dest = zoo.models()["range-int-cast"], tmp_path / "made" / "model.onnx"
    said = zoo_export.written("range-int-cast", row, tmp_path, dest)
    assert said.endswith(" from PyTorch")
    recipe = recipe_file.load(tmp_path / "models" / "range-int-cast" / "recipe.yaml")
    theirs = zoo_check.as_it_came(recipe, recipe.root, tmp_path)
    for _, inputs in zoo_check.unseen(recipe):
        ours = toy_graphs.run(dest, inputs)
        assert np.allclose(theirs(inputs)[0], next(iter(ours.values())), atol=1e-5)
