"""The TensorRT provider's options against the list recorded from its binary."""

from __future__ import annotations

from pathlib import Path

import pytest
from specs import IMAGES, TEXT, request, spec

from enginefarm.errors import ToolchainError
from enginefarm.toolchains import ort_trt

KNOWN = {
    line
    for line in (Path(__file__).parent / "data" / "ort_trt_options.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
BUILD = "1.31.1+tensorrt.10.16.1.11"


@pytest.mark.parametrize("precision", sorted(ort_trt.PRECISION_OPTIONS))
def test_every_option_is_known(precision: str) -> None:
    made = spec(
        "ort-trt",
        BUILD,
        precision=precision,
        profiles=(TEXT, IMAGES),
        workspace_mib=512,
        compatibility="ampere_plus",
        sparse_weights=True,
        strip_plan=True,
        tactic_sources=("JIT_CONVOLUTIONS",),
    )
    asked = request(made, plugins=(Path("/p.so"),))
    assert ort_trt.provider_options(asked, Path("/w/out/engine.plan")).keys() <= KNOWN


def test_profiles_are_listed_one_after_another() -> None:
    options = ort_trt.provider_options(
        request(spec("ort-trt", BUILD, profiles=(TEXT, TEXT))), Path("/p")
    )
    assert options["trt_profile_min_shapes"] == "ids:1x1,mask:1x1,ids:1x1,mask:1x1"


def test_its_own_cache_lives_and_dies_with_the_build() -> None:
    options = ort_trt.provider_options(request(spec("ort-trt", BUILD)), Path("/w/out/engine.plan"))
    assert str(options["trt_engine_cache_path"]).startswith("/w/out/")
    assert str(options["trt_timing_cache_path"]).startswith("/w/out/")


def test_an_artifact_says_what_it_is_valid_for() -> None:
    text = ort_trt.validity(spec("ort-trt", BUILD))
    assert BUILD in text
    assert "compute capability 8.0" in text


@pytest.mark.parametrize("option", ["refit", "version_compatible", "classic_int8"])
def test_what_the_provider_lacks_is_refused_by_name(option: str) -> None:
    with pytest.raises(ToolchainError, match=rf"builder\.{option}"):
        ort_trt.OrtTensorRT().check(spec("ort-trt", BUILD, **{option: True}))


def test_fp8_is_refused() -> None:
    with pytest.raises(ToolchainError, match="no fp8"):
        ort_trt.OrtTensorRT().check(spec("ort-trt", BUILD, precision="fp8"))


def test_without_the_package_the_error_says_what_to_install() -> None:
    with pytest.raises(ToolchainError, match="not installed"):
        ort_trt.OrtTensorRT().identity()
