from __future__ import annotations

import re

import pytest

from enginefarm.documents.gpus import Gpu, by_nvml_name, gpu, table
from enginefarm.errors import GpuError
from enginefarm.names import PRECISION_NAMES
from enginefarm.schema import NAME


@pytest.mark.parametrize(
    ("nvml_name", "label"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
    ],
)
def test_a_name_from_nvml_finds_exactly_its_row(nvml_name: str, label: str) -> None:
    matching = [row.label for row in table().values() if row.matches(nvml_name)]
    assert matching == [label]


@pytest.mark.parametrize(
    "nvml_name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "GRID T4-8C",
        "NVIDIA A100-7-40C",
        "NVIDIA A40-48Q",
        "NVIDIA L40S-2B",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
)
def test_a_slice_or_a_variant_is_not_the_card(nvml_name: str) -> None:
    assert by_nvml_name(nvml_name) is None


def test_a_card_that_is_not_in_the_table_is_none() -> None:
    assert by_nvml_name("NVIDIA GeForce GTX 970") is None


def test_t4_has_neither_bf16_nor_fp8() -> None:
    assert gpu("t4").refuses("int8") is None
    assert "no bf16 tensor cores" in (gpu("t4").refuses("bf16") or "")
    assert "no fp8 tensor cores" in (gpu("t4").refuses("fp8") or "")


def test_only_ada_and_later_have_fp8() -> None:
    for row in table().values():
        major, minor = map(int, row.compute_capability.split("."))
        assert ("fp8" in row.precisions) == ((major, minor) >= (8, 9)), row.label


def test_an_unknown_label_lists_the_known_ones() -> None:
    with pytest.raises(GpuError, match="'t5'") as caught:
        gpu("t5")
    assert "t4, a100" in caught.value.fix


@pytest.mark.parametrize("row", table().values(), ids=list(table()))
def test_a_row_of_the_table_is_sound(row: Gpu) -> None:
    assert re.fullmatch(NAME, row.label)
    assert re.fullmatch(r"\d+\.\d", row.compute_capability)
    assert row.memory_gib > 0
    assert row.bandwidth_gb_s > 0
    assert row.precisions
    assert set(row.precisions) <= set(PRECISION_NAMES)
    assert all(isinstance(pattern, str) and re.compile(pattern) for pattern in row.names)
