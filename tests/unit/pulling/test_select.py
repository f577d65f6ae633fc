from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_manifest import make_manifest

from enginefarm.documents import gpus
from enginefarm.documents.host import Host
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.thresholds import Budget
from enginefarm.documents.versions import version_tuple
from enginefarm.pulling.checks import Fit, fit_of
from enginefarm.pulling.select import Selection, select
from enginefarm.store.budgets import Budgets


def host(label: str = "t4", **facts: Any) -> Host:
    row = gpus.gpu(label)
    known = {
        "gpu": row.label,
        "compute_capability": row.compute_capability,
        "driver": "580.95.05",
        "os": "linux",
        "arch": "x86_64",
        "runtimes": {"tensorrt": "10.16.1.11", "tensorrt-rtx": "1.7.1.116"},
        "plugins": frozenset(),
    }
    return Host.model_validate({**known, **facts})


RTX: dict[str, Any] = {"toolchain": "tensorrt-rtx", "build": "1.7.1.116"}


def reason(selection: Selection) -> str:
    assert not selection.candidates
    return "; ".join(selection.rejections[0].reasons)


def test_the_rank_is_exact_then_same_capability_then_hardware_compatible_then_portable() -> None:
    exact = make_manifest(label="a10g")
    same = make_manifest(label="a40", compatibility="same_compute_capability")
    compatible = make_manifest(label="a100", compatibility="ampere_plus")
    portable = make_manifest(label="a10g", **RTX)
    chosen = select([portable, compatible, same, exact], host("a10g"))
    assert [one.manifest for one in chosen.candidates] == [exact, same, compatible, portable]
    assert [one.fit for one in chosen.candidates] == list(Fit)


def test_a_plan_that_gpus_share_fits_each_of_them_and_no_other() -> None:
    made = make_manifest(label="t4", **RTX)
    carried = made.build.model_copy(update={"compute_capabilities": ("7.5", "8.0", "8.6")})
    shared = made.model_copy(update={"build": carried})
    (candidate,) = select([shared], host("a10g")).candidates
    assert candidate.fit is Fit.PORTABLE
    assert "(compute capability 7.5, 8.0, 8.6)" in reason(select([shared], host("l4")))


def test_an_engine_whose_runtime_is_installed_comes_before_one_whose_runtime_is_not() -> None:
    native, portable = make_manifest(), make_manifest(**RTX)
    chosen = select([native, portable], host(runtimes={"tensorrt-rtx": "1.7.1.116"}))
    assert [one.manifest for one in chosen.candidates] == [portable, native]
    assert "needs tensorrt 10.16.1.11" in chosen.candidates[1].caveats[0]


def test_a_context_model_needs_the_very_pair_of_onnx_runtime_and_tensorrt() -> None:
    pair = "1.31.1+tensorrt.10.16.1.11"
    made = make_manifest(toolchain="ort-trt", build=pair)
    has = {"tensorrt": "10.16.1.11", "onnxruntime-tensorrt": pair}
    (candidate,) = select([made], host(runtimes=has)).candidates
    assert (candidate.fit, candidate.caveats) == (Fit.EXACT_GPU, ("not yet verified on a GPU",))
    newer = has | {"onnxruntime-tensorrt": "1.32.0+tensorrt.10.16.1.11"}
    assert "the host has 1.32.0+tensorrt" in reason(select([made], host(runtimes=newer)))


@pytest.mark.parametrize(
    ("manifest", "on", "says"),
    [
        (make_manifest(label="l4"), host("t4"), "built for l4 (compute capability 8.9)"),
        (
            make_manifest(label="a100", compatibility="ampere_plus"),
            host("t4"),
            "compatibility ampere_plus; the host has 7.5",
        ),
        (make_manifest(**{**RTX, "label": "a100"}), host("l4"), "built for a100"),
        (make_manifest(build="10.9.0.34"), host(), "built with tensorrt 10.9.0.34; the host has"),
        (
            make_manifest(build="11.4.0.106", version_compatible=True),
            host(),
            "later builds of the same major version",
        ),
        (
            make_manifest(build="10.17.0.1", version_compatible=True),
            host(),
            "the host has 10.16.1.11",
        ),
        (make_manifest(system=("windows", "x86_64")), host(), "built for windows/x86_64"),
        (make_manifest(system=("linux", "aarch64")), host(), "built for linux/aarch64"),
        (make_manifest(), host(driver="535.183.01"), "needs driver 580.65.06 or newer"),
        (make_manifest(plugins=("ab" * 32,)), host(), "plugin libraries that the host lacks"),
        (make_manifest(over_budget=("cosine 0.5 < 0.99",)), host(), "over the accuracy budget"),
        (make_manifest(on_device="failed"), host(), "failed verification on the device"),
    ],
)
def test_each_reason_not_to_run_is_a_rejection_that_says_so(
    manifest: Manifest, on: Host, says: str
) -> None:
    assert says in reason(select([manifest], on))


def test_another_precision_than_asked_for_is_a_rejection() -> None:
    chosen = select([make_manifest(precision="int8")], host(), precision="fp16")
    assert "its precision is int8, not fp16" in reason(chosen)


def test_a_version_compatible_engine_runs_on_a_later_build_of_its_major_version() -> None:
    older = make_manifest(build="10.9.0.34", version_compatible=True)
    assert select([older], host()).candidates


def test_what_the_host_does_not_say_is_a_caveat_and_not_a_pass() -> None:
    unknown = Host(gpu="t4", compute_capability="7.5")
    (candidate,) = select([make_manifest(plugins=("ab" * 32,))], unknown).candidates
    text = " | ".join(candidate.caveats)
    for word in ("tensorrt 10.16.1.11", "linux/x86_64", "driver 580.65.06", "plugin", "verified"):
        assert word in text


def test_a_card_that_is_not_in_the_table_gets_engines_of_its_capability() -> None:
    unnamed = host("a40", gpu=None)
    (candidate,) = select([make_manifest(label="a10")], unnamed).candidates
    assert candidate.fit is Fit.SAME_COMPUTE_CAPABILITY
    assert "tuned on a10" in candidate.caveats[0]


def test_a_newer_model_wins_over_a_better_fit_of_an_older_one() -> None:
    old = make_manifest(graph=b"v1")
    new = make_manifest(graph=b"v2", minutes=60, **RTX)
    chosen = select([old, new], host())
    assert [one.manifest for one in chosen.candidates] == [new, old]


def test_a_rebuild_of_one_precision_does_not_make_the_other_old() -> None:
    fp16 = make_manifest(minutes=0)
    int8 = make_manifest(precision="int8", minutes=60)
    chosen = select([fp16, int8], host())
    assert [one.manifest.precision for one in chosen.candidates] == ["fp16", "int8"]


LABELS = tuple(gpus.table())
BUILDS = {"tensorrt": ("10.9.0.34", "10.16.1.11", "11.4.0.106"), "tensorrt-rtx": ("1.7.1.116",)}


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    toolchain = draw(st.sampled_from(tuple(BUILDS)))
    return make_manifest(
        label=draw(st.sampled_from(LABELS)),
        precision=draw(st.sampled_from(("fp16", "int8", "fp32"))),
        toolchain=toolchain,
        build=draw(st.sampled_from(BUILDS[toolchain])),
        cuda=draw(st.sampled_from(("12.9", "13"))),
        system=draw(st.sampled_from((("linux", "x86_64"), ("linux", "aarch64")))),
        graph=draw(st.sampled_from((b"v1", b"v2"))),
        compatibility=draw(st.sampled_from(("none", "same_compute_capability", "ampere_plus"))),
        version_compatible=draw(st.booleans()),
        minutes=draw(st.integers(0, 3)),
        over_budget=draw(st.sampled_from(((), ("cosine",)))),
        on_device=draw(st.sampled_from(("pending", "passed", "failed"))),
    )


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    return host(
        draw(st.sampled_from(LABELS)),
        driver=draw(st.sampled_from(("550.54.14", "580.95.05"))),
        arch=draw(st.sampled_from(("x86_64", "aarch64"))),
        runtimes={
            "tensorrt": draw(st.sampled_from(BUILDS["tensorrt"])),
            "tensorrt-rtx": "1.7.1.116",
        },
    )


def can_run(manifest: Manifest, on: Host) -> bool:
    """NVIDIA's rules, written down a second time and another way round."""
    spec, toolchain = manifest.spec, manifest.spec.toolchain
    assert on.compute_capability is not None
    assert on.driver is not None
    same = spec.gpu.compute_capability == on.compute_capability
    ampere = min(version_tuple(spec.gpu.compute_capability), version_tuple(on.compute_capability))
    hardware = same or (
        toolchain.name == "tensorrt"
        and spec.builder.compatibility == "ampere_plus"
        and ampere >= (8, 0)
    )
    here = on.runtimes["tensorrt-rtx" if toolchain.name == "tensorrt-rtx" else "tensorrt"]
    runtime = here == toolchain.build or (
        spec.builder.version_compatible
        and here.split(".")[0] == toolchain.build.split(".")[0]
        and version_tuple(here) >= version_tuple(toolchain.build)
    )
    driver = version_tuple(on.driver)[0] >= (580 if toolchain.cuda == "13" else 525)
    return hardware and runtime and driver and toolchain.arch == on.arch


@settings(max_examples=150, deadline=None)
@given(st.lists(manifests(), max_size=8), hosts(), st.randoms(use_true_random=False))
def test_selection_properties(found: list[Manifest], on: Host, random: Any) -> None:
    chosen = select(found, on)
    accepted = [one.manifest for one in chosen.candidates]
    rejected = [one.manifest for one in chosen.rejections]
    # Nothing is lost, and nothing is said twice.
    assert len(accepted) + len(rejected) == len(found)
    # Never an engine that cannot run; never one that failed a check; always a reason.
    assert all(can_run(one, on) for one in accepted)
    assert all(
        one.verification.passed and one.device_verification.status != "failed" for one in accepted
    )
    assert all(one.reasons for one in chosen.rejections)
    # What could run and passed is not refused.
    assert not any(
        can_run(one, on) and one.verification.passed and one.device_verification.status != "failed"
        for one in rejected
    )
    assert all(one.fit == fit_of(one.manifest, on) for one in chosen.candidates)
    # The order does not depend on the order of the listing.
    shuffled = list(found)
    random.shuffle(shuffled)
    again = select(shuffled, on)
    key = [(one.manifest.spec_digest, one.manifest.created_at) for one in chosen.candidates]
    assert key == [(one.manifest.spec_digest, one.manifest.created_at) for one in again.candidates]


def test_the_recipes_budget_of_today_decides_and_not_that_of_the_build() -> None:
    made = make_manifest(over_budget=("cosine 0.5 < 0.99",))
    today = Budgets(of={made.precision: Budget(min_cosine=0.9, max_relative_l2=0.5)})
    assert select([made], host(), budgets=today).candidates
    (output,) = made.verification.outputs
    worse = made.verification.model_copy(
        update={"outputs": (output.model_copy(update={"cosine": 0.8}),), "over_budget": ()}
    )
    loose = made.model_copy(update={"verification": worse})
    assert select([loose], host()).candidates
    assert "cosine 0.8 is below 0.9" in reason(select([loose], host(), budgets=today))
    asks = Budgets(of={made.precision: Budget(min_top1_agreement=0.9)})
    (candidate,) = select([made], host(), budgets=asks).candidates
    assert any("top-1 agreement, which was not measured" in caveat for caveat in candidate.caveats)


def test_a_slice_of_a_card_gets_its_engines_with_a_caveat() -> None:
    on = host("a100").model_copy(
        update={"gpu": None, "gpu_name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb"}
    )
    (candidate,) = select([make_manifest(label="a100", on_device="passed")], on).candidates
    assert candidate.fit is not Fit.EXACT_GPU
    assert any("MIG 1g.5gb" in caveat for caveat in candidate.caveats)
