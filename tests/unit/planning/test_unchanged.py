"""A precision that changed nothing is refused, and what it changed is said."""

from __future__ import annotations

import pytest

from enginefarm.errors import PrecisionError
from enginefarm.graph.precisions.use import BY_NAME
from enginefarm.planning import graphs


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_graph_with_nothing_in_16_bits_is_refused(precision: str) -> None:
    with pytest.raises(PrecisionError, match=f"nothing in the graph computes in {precision}"):
        graphs.refuse_unchanged(precision, {"low_nodes": 0, "wide_nodes": {"MatMul": 3}})
    graphs.refuse_unchanged(precision, {"low_nodes": 1})
    graphs.refuse_unchanged("fp32", {})


@pytest.mark.parametrize(("reason", "named"), [(BY_NAME, True), ("a rule says so", False)])
def test_the_remedy_names_keep_wide_where_the_recipe_has_it(reason: str, named: bool) -> None:
    kept = {"node": "mm", "op_type": "MatMul", "reason": reason, "gain_db": None}
    with pytest.raises(PrecisionError) as caught:
        graphs.refuse_unchanged("fp16", {"low_nodes": 0, "kept_wide": [kept]})
    assert ("keep_wide" in caught.value.fix) == named


def test_how_much_of_the_graph_is_in_the_precision_is_said() -> None:
    eight = {"quantized_operators": 52, "quantizable_operators": 60, "low_nodes": 3}
    assert graphs.operators(eight) == "52 of 60 operators in 8 bits"
    of_earlier_versions = {"quantised_operators": 52, "quantisable_operators": 60}
    assert graphs.operators(of_earlier_versions) == "52 of 60 operators in 8 bits"
    sixteen = {"low_nodes": 7, "wide_nodes": {"Exp": 1, "Pow": 2}}
    assert graphs.operators(sixteen) == "7 nodes in 16 bits, 3 in FP32"
    assert graphs.operators({}) == ""
