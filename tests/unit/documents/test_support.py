from __future__ import annotations

from pathlib import Path

import pytest

from enginefarm.documents import gpus, support
from enginefarm.names import PRECISION_NAMES

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("gpu", "toolchain", "precision", "word"),
    [
        ("t4", "tensorrt-rtx", "fp16", "listed"),
        ("t4", "tensorrt-rtx", "int8", "not listed"),
        ("a100", "tensorrt-rtx", "fp16", "not listed"),
        ("l4", "tensorrt-rtx", "fp8", "listed"),
        ("h100", "tensorrt", "fp16", "proven here"),
        ("h100", "tensorrt", "fp8", "not known"),
        ("l4", "a-toolchain-of-ones-own", "fp16", "not known"),
    ],
)
def test_a_cell_says_what_is_known_of_it(
    gpu: str, toolchain: str, precision: str, word: str
) -> None:
    assert support.support(gpus.gpu(gpu), toolchain, precision) == word


def test_only_what_is_not_listed_has_a_caution_and_it_names_the_gpu_and_the_precision() -> None:
    assert support.caution(gpus.gpu("l4"), "tensorrt-rtx", "fp16") == ""
    assert support.caution(gpus.gpu("h100"), "tensorrt", "fp8") == ""
    said = support.caution(gpus.gpu("t4"), "tensorrt-rtx", "int8")
    assert "int8 on t4 (compute capability 7.5)" in said


def test_every_row_is_about_gpus_precisions_and_pages_that_exist() -> None:
    known = {row.compute_capability for row in gpus.table().values()}
    for row in support.table().values():
        assert row.source
        assert set(row.listed or {}) <= known
        for precisions in (row.listed or {}).values():
            assert set(precisions) <= set(PRECISION_NAMES)
        for proof in row.proven:
            assert proof.gpu in gpus.table()
            assert set(proof.precisions) <= set(PRECISION_NAMES)
            assert (ROOT / proof.page).is_file()
