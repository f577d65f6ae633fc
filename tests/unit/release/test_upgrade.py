from __future__ import annotations

import pytest
from sample_manifest import make_manifest, make_spec
from sample_rows import make_row

from enginefarm.documents.host import Host
from enginefarm.pulling.select import select
from enginefarm.release.upgrade import upgrade_report, why_not_loadable

NEW = "10.17.0.2"


def test_engines_of_the_old_build_die_and_others_do_not_appear() -> None:
    old = make_manifest(label="t4")
    other = make_manifest(label="l4", toolchain="tensorrt-rtx", build="1.7.1.116")
    (fate,) = upgrade_report([old, other], "tensorrt", NEW).engines
    assert (fate.gpu, fate.fate) == ("t4", "to-rebuild")
    assert "loads on that build alone" in fate.reason


def test_a_version_compatible_engine_lives_within_its_major_version() -> None:
    kept = make_manifest(version_compatible=True)
    assert upgrade_report([kept], "tensorrt", NEW).engines[0].fate == "lives"
    major = upgrade_report([kept], "tensorrt", "11.4.0.106").engines[0]
    assert major.fate == "to-rebuild"
    assert "ends with major version 10" in major.reason


def test_an_engine_whose_successor_is_built_is_rebuilt_even_under_another_cuda() -> None:
    old, new = make_manifest(), make_manifest(build=NEW, cuda="14")
    (fate,) = upgrade_report([old, new], "tensorrt", NEW).engines
    assert (fate.fate, fate.new_spec_digest) == ("rebuilt", new.spec_digest)


def test_the_newest_engine_of_a_cell_counts_and_build_time_is_summed() -> None:
    first, second = make_manifest(graph=b"1"), make_manifest(graph=b"2", minutes=5)
    other = make_manifest(label="l4")
    report = upgrade_report([second, first, other], "tensorrt", NEW)
    assert {engine.spec_digest for engine in report.engines} == {
        second.spec_digest,
        other.spec_digest,
    }
    assert report.rebuild_seconds == 2


@pytest.mark.parametrize("version_compatible", [False, True])
@pytest.mark.parametrize("build", ["10.16.1.11", "10.17.0.2", "10.9.0.34", "11.4.0.106"])
def test_an_engine_dies_exactly_when_selection_would_refuse_it_on_such_a_host(
    build: str, version_compatible: bool
) -> None:
    spec = make_spec(version_compatible=version_compatible)
    manifest = make_manifest(version_compatible=version_compatible)
    host = Host.model_validate(
        {
            "gpu": "t4",
            "compute_capability": "7.5",
            "driver": "580.95.05",
            "os": "linux",
            "arch": "x86_64",
            "runtimes": {"tensorrt": build},
        }
    )
    assert (why_not_loadable(spec, build) is None) is bool(select([manifest], host).candidates)


def test_after_the_rebuild_slower_and_less_accurate_cells_are_named() -> None:
    old = [make_row(i, relative_l2_max=0.010, size_bytes=100, cuda="12") for i in range(6)]
    new = make_row(
        7,
        toolchain_build=NEW,
        cuda="13",
        latency_ms_median=2.5,
        relative_l2_max=0.020,
        size_bytes=90,
    )
    (change,) = upgrade_report([], "tensorrt", NEW, [*old, new]).changes
    assert change.state == "slower"
    assert (change.latency_ms_old, change.latency_ms_new) == (2.0, 2.5)
    assert change.less_accurate
    assert (change.size_bytes_old, change.size_bytes_new) == (100, 90)


def test_builds_measured_under_other_power_states_are_not_compared() -> None:
    old = make_row(power_state="P0")
    new = make_row(7, toolchain_build=NEW, power_state="P8", latency_ms_median=9.0)
    (change,) = upgrade_report([], "tensorrt", NEW, [old, new]).changes
    assert change.state == "no-baseline"
    assert change.because == "power state differs: P8 and P0"


def test_a_rebuilt_engine_that_is_not_measured_yet_says_so() -> None:
    new = make_row(7, toolchain_build=NEW, outcome="built", latency_ms_median=None)
    (change,) = upgrade_report([], "tensorrt", NEW, [make_row(), new]).changes
    assert change.because == "not measured on the new build yet"
