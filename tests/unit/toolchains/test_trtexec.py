"""trtexec: its command lines against the option lists, its output against recorded logs."""

from __future__ import annotations

from pathlib import Path

import pytest
import trtexec_log
from hypothesis import given
from hypothesis import strategies as st
from specs import IMAGES, TEXT, request, spec

from enginefarm.errors import (
    BuildOutOfMemory,
    DriverTooOld,
    ParseError,
    ToolchainError,
)
from enginefarm.toolchains import trtexec
from tests.unit.toolchains.published_options import recorded

DATA = Path(__file__).parent / "data"
EVERYTHING = {
    "optimization_level": 4,
    "workspace_mib": 2048,
    "compatibility": "ampere_plus",
    "version_compatible": True,
    "sparse_weights": True,
    "tactic_sources": ("JIT_CONVOLUTIONS",),
}
BUILDS = {"10": "10.16.1.11", "11": "11.4.0.106"}


UNCONFIRMED = {
    "--dynamicPlugins",
    "--hardwareCompatibilityLevel",
    "--profile",
    "--sparsity",
    "--tacticSources",
}
"""Options of ours that no published package was found to spell (published_options.py)."""


@pytest.mark.parametrize("release", ["10", "11"])
def test_every_option_is_published_or_listed_as_unconfirmed(release: str) -> None:
    made = spec("trtexec", BUILDS[release], profiles=(IMAGES, IMAGES), **EVERYTHING)
    line = trtexec.command(request(made, plugins=(Path("/p/one.so"),)), "trtexec")
    used = {argument.partition("=")[0] for argument in line[1:]}
    evidence = recorded(f"trtexec_options_{release}.txt")
    assert used == set(evidence)
    assert {option for option in used if evidence[option] == "unconfirmed"} == UNCONFIRMED


def test_strong_typing_is_a_flag_in_10_only() -> None:
    lines = {
        key: trtexec.command(request(spec("trtexec", build)), "trtexec")
        for key, build in BUILDS.items()
    }
    assert "--stronglyTyped" in lines["10"]
    assert [word for word in lines["10"] if word != "--stronglyTyped"] == lines["11"]


def test_shapes_and_profiles_are_spelled_as_trtexec_wants_them() -> None:
    line = trtexec.command(request(spec("trtexec", profiles=(TEXT, IMAGES))), "trtexec")
    assert "--minShapes=ids:1x1,mask:1x1" in line
    first, second = line.index("--profile=0"), line.index("--profile=1")
    assert line.index("--maxShapes=ids:4x128,mask:4x128") in range(first, second)
    assert line[second + 1] == "--minShapes=x:1x3x224x224"
    assert "--profile=0" not in trtexec.command(request(spec("trtexec")), "trtexec")


def test_tactic_sources_name_every_one_on_or_off() -> None:
    line = trtexec.command(
        request(spec("trtexec", BUILDS["11"], tactic_sources=("JIT_CONVOLUTIONS",))), "trtexec"
    )
    assert "--tacticSources=-EDGE_MASK_CONVOLUTIONS,+JIT_CONVOLUTIONS" in line


def test_a_log_with_inference() -> None:
    report = trtexec.parse_log((DATA / "trtexec_10_inference.log").read_text())
    assert report.passed
    assert report.version == "10.7.0.23"
    assert report.build_seconds == 33.4821
    assert report.errors == ()


def test_a_log_that_a_real_trtexec_wrote() -> None:
    # TensorRT 8.6.1 on an H100: tests/gpu/test_against_trtexec.py keeps it.
    report = trtexec.parse_log((DATA / "trtexec_86_inference.log").read_text())
    assert report.passed
    assert report.version == "8.6.1"
    assert report.errors == ()


def test_speed_is_read_for_the_comparison_on_a_gpu() -> None:
    # tests/gpu/test_against_trtexec.py compares our harness with these.
    found = trtexec_log.medians((DATA / "trtexec_86_inference.log").read_text())
    assert found[:4] == (0.2146, 0.00512695, 0.200684, 0.00848389)
    with pytest.raises(ValueError, match="nothing of its speed"):
        trtexec_log.medians((DATA / "trtexec_10_failed.log").read_text())


def test_a_real_trtexec_without_a_driver_is_told_as_the_hosts_fault() -> None:
    said = "Cuda failure: CUDA driver version is insufficient for CUDA runtime version"
    error = trtexec.failure(trtexec.parse_log(f"[11/26/2026-12:50:44] [I] \n{said}\n"), 1)
    assert isinstance(error, DriverTooOld)
    assert said in error.why


def test_a_log_of_a_failure_gives_the_cause() -> None:
    report = trtexec.parse_log((DATA / "trtexec_10_failed.log").read_text())
    assert not report.passed
    assert report.version == "10.16.0.72"
    error = trtexec.failure(report, 1)
    assert isinstance(error, ParseError)
    assert "Failed to parse onnx file" in error.why


def test_out_of_memory_is_told_from_other_failures() -> None:
    report = trtexec.parse_log("[01/01/2026-00:00:00] [E] [TRT] Error Code 2: OutOfMemory")
    assert isinstance(trtexec.failure(report, 1), BuildOutOfMemory)


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("[TensorRT v100700] [b23]", "10.7.0.23"),
        ("[TensorRT v101600] [b72]", "10.16.0.72"),
        ("[TensorRT v110400] [b106]", "11.4.0.106"),
        ("[TensorRT v8601]", "8.6.1"),
        ("nothing", None),
    ],
)
def test_versions(banner: str, version: str | None) -> None:
    assert trtexec.version_of(banner) == version


@given(st.text(max_size=2000))
def test_any_text_is_a_report(text: str) -> None:
    assert trtexec.parse_log(text).passed in {True, False}


@given(st.data())
def test_a_damaged_log_is_a_report(data: st.DataObject) -> None:
    whole = (DATA / "trtexec_10_inference.log").read_text()
    cut = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.text(max_size=50))
    trtexec.parse_log(whole[:cut] + junk + whole[cut:])
    trtexec.parse_log(whole[:cut])


def test_without_a_binary_the_error_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolchainError, match="no trtexec") as caught:
        trtexec.Trtexec().identity()
    assert "package" in caught.value.fix
