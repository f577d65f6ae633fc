"""tests/gpu/prove.py: the page that it writes, and its row of support.toml."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from enginefarm.documents import support

ROOT = Path(__file__).parents[3]
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_flow" name="test_good"/>
<testcase classname="tests.gpu.test_flow" name="test_bad">
<failure message="assert 3 &lt; 2">x</failure></testcase>
<testcase classname="tests.gpu.test_ort_trt" name="test_broken">
<error message="no provider"/></testcase>
<testcase classname="tests.gpu.test_timing" name="test_left">
<skipped message="resnet50 was not built"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def prove() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prove", ROOT / "tests" / "gpu" / "prove.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prove"] = module  # its tuples look their types up there
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_is_proven_what_failed_and_what_did_not_run(
    prove: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "junit-all.xml").write_text(JUNIT)
    tests = prove.ran([tmp_path / "junit-all.xml"])
    rows = [
        prove.Row("fp16", "", 51.5, 19_740_300, 0.999987, 0.0053, ((1, False, 0.608, 0.855),)),
        prove.Row("fp8", "not built: exit 26: no fp8"),
    ]
    where = prove.Machine("t4", "Tesla T4", "580.1", "a host", "10.15.1", "pycuda 2026.1", "abc")
    page = prove.page(where, rows, tests, "2026-11-26 20:00 UTC")
    assert "Proven here: **fp16**" in page
    assert "| fp8 | not built: exit 26: no fp8 | - |" in page
    assert "| fp16 | no | 0.608 / 0.855 |" in page
    assert "1 passed, 2 failed, 1 not run" in page
    assert "`test_flow::test_bad`: assert 3 < 2" in page
    assert "`test_timing::test_left`: resnet50 was not built" in page


def test_a_test_that_ran_in_its_second_environment_is_not_called_not_run(
    prove: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "junit-all.xml").write_text(JUNIT)
    (tmp_path / "junit-ort.xml").write_text(
        '<testsuite><testcase classname="tests.gpu.test_timing" name="test_left"/></testsuite>'
    )
    tests = prove.ran(sorted(tmp_path.glob("junit-*.xml")))
    assert (tests.passed, len(tests.failed), tests.not_run) == (2, 2, ())


def test_where_nothing_passed_nothing_is_proven(prove: ModuleType) -> None:
    where = prove.Machine("t4", "Tesla T4", "580.1", "a host", "10.15.1", "", "abc")
    page = prove.page(where, [prove.Row("fp16", "failed on the GPU")], prove.ran([]), "today")
    assert "Proven here: **nothing**" in page


def test_a_second_proof_of_a_gpu_and_release_replaces_the_first_and_no_other(
    prove: ModuleType,
) -> None:
    text = (ROOT / "enginefarm" / "documents" / "support.toml").read_text("utf-8")
    for precisions in (["fp16"], ["fp16", "int8"]):
        text = prove.with_row(text, "tensorrt", "t4", "10.15.1", precisions, "proof-t4-10.15.1.md")
    text = prove.with_row(text, "tensorrt", "t4", "11.4.0", ["fp32"], "proof-t4-11.4.0.md")
    rows = support.rows(text)
    of_t4 = [(one.release, one.precisions) for one in rows["tensorrt"].proven if one.gpu == "t4"]
    assert of_t4 == [("10.15.1", ["fp16", "int8"]), ("11.4.0", ["fp32"])]
    assert any(one.gpu == "h100" for one in rows["tensorrt"].proven)
    assert rows["tensorrt-rtx"].listed


def test_two_gpus_share_the_precisions_and_each_process_keeps_to_one(
    prove: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    found = prove.on_the_cards(os.getenv, ["CUDA_VISIBLE_DEVICES"] * 8)
    assert set(found) <= {"3", "5"}
