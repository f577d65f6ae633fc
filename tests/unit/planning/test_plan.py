"""Recipe -> targets -> specs, and what takes part in the action key."""

from __future__ import annotations

import pytest

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import (
    BlobRef,
    BuildSpec,
    CalibrationUse,
    GpuTarget,
    OnnxRef,
    PrecisionUse,
    ToolchainId,
    ToolUse,
)
from enginefarm.errors import GpuError, RecipeError, ToolchainError
from enginefarm.planning import outcome, plan
from enginefarm.toolchains import toolchain

RTX = ToolchainId(name="tensorrt-rtx", build="1.7.1.116", cuda="13", os="linux", arch="x86_64")
TRT = ToolchainId(name="tensorrt", build="10.16.1.11", cuda="13", os="linux", arch="x86_64")
CROSS = plan.Offer(gpu=None, pool="cpu", toolchains=(RTX,))

RECIPE = Recipe.model_validate(
    {
        "name": "net",
        "source": {"kind": "onnx", "path": "net.onnx"},
        "inputs": [{"name": "x", "shape": ["batch", 3, 8, 8]}],
        "profiles": [
            {"name": "small", "dims": {"batch": [1, 1, 4]}},
            {"name": "large", "dims": {"batch": [8, 16, 32]}},
        ],
        "precisions": ["fp16", "int8"],
        "gpus": ["t4", "a100"],
        "calibration": {"data": {"path": "data.npz"}},
    }
)

MODEL = plan.Model(
    onnx=OnnxRef(model=BlobRef(digest="a" * 64, size_bytes=10), opset=20),
    exporter=ToolUse(name="torch", version="2.13.0", arguments={"opset": 20}),
    slimmer=ToolUse(name="onnxslim", version="0.1.98"),
)
INT8 = PrecisionUse(
    name="int8",
    tools=(ToolUse(name="onnxruntime", version="1.32.0"),),
    calibration=CalibrationUse(
        data_digest="b" * 64, method="entropy", percentile=None, batches=4, batch_size=8, seed=0
    ),
)


def spec_of(recipe: Recipe = RECIPE, model: plan.Model = MODEL, **target: object) -> BuildSpec:
    values = {"gpu": "t4", "precision": "int8", "toolchain": RTX, "pool": "cpu", **target}
    return plan.resolve(recipe, plan.BuildTarget.model_validate(values), model, INT8)


def test_targets_are_gpus_times_precisions_in_the_recipes_order() -> None:
    found = plan.targets(RECIPE, [CROSS])
    assert [target.label for target in found.wanted] == [
        "t4/fp16",
        "t4/int8",
        "a100/fp16",
        "a100/int8",
    ]
    assert {target.pool for target in found.wanted} == {"cpu"}


def test_a_native_worker_is_preferred_for_its_own_label_only() -> None:
    native = plan.Offer(gpu="t4", pool="gpu-t4", toolchains=(TRT,))
    found = {target.label: target for target in plan.targets(RECIPE, [CROSS, native]).wanted}
    assert (found["t4/fp16"].toolchain, found["t4/fp16"].pool) == (TRT, "gpu-t4")
    assert (found["a100/fp16"].toolchain, found["a100/fp16"].pool) == (RTX, "cpu")


def test_a_worker_that_stands_in_for_a_label_is_preferred_to_the_shared_pool() -> None:
    stand_in = plan.Offer(gpu="a100", pool="gpu-a100", toolchains=(RTX,))
    found = {target.label: target for target in plan.targets(RECIPE, [CROSS, stand_in]).wanted}
    assert found["a100/int8"].pool == "gpu-a100"
    assert found["t4/int8"].pool == "cpu"


def test_nobody_offers_what_is_asked_for() -> None:
    asked = RECIPE.model_copy(update={"toolchain": "trtexec"})
    with pytest.raises(ToolchainError, match="trtexec") as caught:
        plan.targets(asked, [CROSS])
    assert "enginefarm worker --gpu t4" in caught.value.fix


def test_an_unknown_gpu_names_the_labels_there_are() -> None:
    with pytest.raises(GpuError, match="gtx970") as caught:
        plan.targets(RECIPE.model_copy(update={"gpus": ("gtx970",)}), [CROSS])
    assert "t4" in caught.value.fix


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_precision_that_t4_lacks_is_refused_with_the_reason(precision: str) -> None:
    wanted = RECIPE.model_copy(update={"precisions": (precision,), "gpus": ("t4",)})
    with pytest.raises(GpuError, match=f"{precision} cannot be built for t4") as caught:
        plan.targets(wanted, [CROSS])
    assert "7.5" in caught.value.why
    assert "allow_skip" in caught.value.fix


def test_allow_skip_skips_visibly_and_builds_the_rest() -> None:
    wanted = RECIPE.model_copy(update={"precisions": ("fp16", "bf16"), "allow_skip": True})
    found = plan.targets(wanted, [CROSS])
    assert [(skip.gpu, skip.precision) for skip in found.skipped] == [("t4", "bf16")]
    assert "no bf16 tensor cores" in found.skipped[0].reason
    assert [target.label for target in found.wanted] == ["t4/fp16", "a100/fp16", "a100/bf16"]


def test_one_impossible_gpu_does_not_hide_the_others() -> None:
    found = plan.targets(RECIPE.model_copy(update={"precisions": ("fp16", "bf16")}), [CROSS])
    assert [target.label for target in found.wanted] == ["t4/fp16", "a100/fp16", "a100/bf16"]
    (refused,) = found.skipped
    assert (refused.gpu, refused.precision, refused.refused) == ("t4", "bf16", True)
    assert "bf16 cannot be built for t4" in refused.reason
    row = outcome.of_skip("net", refused)
    assert (row.fine, row.exit_code) == (False, GpuError.exit_code)


def test_a_gpu_that_nobody_builds_for_does_not_hide_the_others() -> None:
    native = plan.Offer(gpu="a100", pool="gpu-a100", toolchains=(TRT,))
    asked = RECIPE.model_copy(update={"toolchain": "tensorrt", "allow_skip": True})
    found = plan.targets(asked, [CROSS, native])
    assert [target.label for target in found.wanted] == ["a100/fp16", "a100/int8"]
    assert [skip.gpu for skip in found.skipped] == ["t4", "t4"]
    assert all(skip.refused for skip in found.skipped), "the recipe allows what a GPU lacks only"
    assert "enginefarm worker --gpu t4" in found.skipped[0].reason


def test_every_profile_gives_min_opt_and_max_of_every_input() -> None:
    small, large = plan.shape_profiles(RECIPE)
    assert small.shapes["x"].max == (4, 3, 8, 8)
    assert (large.shapes["x"].min, large.shapes["x"].opt) == ((8, 3, 8, 8), (16, 3, 8, 8))


def test_narrowing_keeps_the_recipes_order_and_refuses_what_it_does_not_list() -> None:
    assert plan.narrowed(RECIPE, gpus=["a100", "t4"]).gpus == ("t4", "a100")
    assert plan.narrowed(RECIPE).gpus == RECIPE.gpus
    with pytest.raises(RecipeError, match="l4 is not in the recipe"):
        plan.narrowed(RECIPE, gpus=["l4"])


KEY_CHANGES: dict[str, object] = {
    "salt": spec_of(RECIPE.model_copy(update={"salt": "again"})),
    "onnx": spec_of(
        model=MODEL.model_copy(
            update={
                "onnx": MODEL.onnx.model_copy(
                    update={"opset": 20, "model": BlobRef(digest="c" * 64, size_bytes=10)}
                )
            }
        )
    ),
    "external data": spec_of(
        model=MODEL.model_copy(
            update={
                "onnx": MODEL.onnx.model_copy(
                    update={"data": BlobRef(digest="d" * 64, size_bytes=1 << 31)}
                )
            }
        )
    ),
    "exporter version": spec_of(
        model=MODEL.model_copy(update={"exporter": ToolUse(name="torch", version="2.14.1")})
    ),
    "exporter arguments": spec_of(
        model=MODEL.model_copy(
            update={"exporter": MODEL.exporter.model_copy(update={"arguments": {"opset": 21}})}
        )
    ),
    "slimmer": spec_of(
        model=MODEL.model_copy(update={"slimmer": ToolUse(name="onnxslim", version="0.2")})
    ),
    "plugins": spec_of(model=MODEL.model_copy(update={"plugins": ("e" * 64,)})),
    "gpu": spec_of(gpu="a100"),
    "same compute capability, other label": spec_of(gpu="a100-80gb"),
    "toolchain": spec_of(toolchain=TRT),
    "toolchain build": spec_of(toolchain=RTX.model_copy(update={"build": "1.7.1.117"})),
    "cuda": spec_of(toolchain=RTX.model_copy(update={"cuda": "12"})),
    "os": spec_of(toolchain=RTX.model_copy(update={"os": "windows"})),
    "arch": spec_of(toolchain=RTX.model_copy(update={"arch": "aarch64"})),
    "profiles": spec_of(RECIPE.model_copy(update={"profiles": RECIPE.profiles[:1]})),
}
for name, value in {
    "optimization_level": 5,
    "workspace_mib": 512,
    "compatibility": "ampere_plus",
    "version_compatible": True,
    "sparse_weights": True,
    "tactic_sources": ("CUBLAS_LT",),
    "attempts": 3,
}.items():
    KEY_CHANGES[f"builder.{name}"] = spec_of(
        RECIPE.model_copy(update={"builder": RECIPE.builder.model_copy(update={name: value})})
    )
for name, value in {
    "data_digest": "f" * 64,
    "method": "minmax",
    "percentile": 99.9,
    "batches": 5,
    "batch_size": 4,
    "seed": 1,
}.items():
    changed = INT8.calibration.model_copy(update={name: value})  # type: ignore[union-attr]
    KEY_CHANGES[f"calibration.{name}"] = spec_of().model_copy(
        update={"precision": INT8.model_copy(update={"calibration": changed})}
    )


@pytest.mark.parametrize("what", KEY_CHANGES)
def test_each_input_changes_the_key(what: str) -> None:
    assert KEY_CHANGES[what].digest != spec_of().digest  # type: ignore[attr-defined]


def test_no_two_of_the_changes_share_a_key() -> None:
    digests = {spec.digest for spec in KEY_CHANGES.values()}  # type: ignore[attr-defined]
    assert len(digests) == len(KEY_CHANGES)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another-name"},
        {"allow_skip": True},
        {"gpus": ("t4", "l4", "h100")},
        {"precisions": ("int8",)},
        {"accuracy": {"int8": {"min_cosine": 0.5}}},
    ],
)
def test_what_does_not_decide_the_plan_does_not_change_the_key(changes: dict[str, object]) -> None:
    assert spec_of(RECIPE.model_copy(update=changes)).digest == spec_of().digest


def test_the_key_is_the_same_in_another_process_and_another_field_order() -> None:
    spec = spec_of()
    turned = dict(reversed(spec.model_dump(mode="json").items()))
    assert BuildSpec.model_validate(turned).digest == spec.digest


def test_cross_builds_of_one_precision_share_a_plan_and_no_spec() -> None:
    a100, l4 = spec_of(gpu="a100"), spec_of(gpu="l4")
    assert a100.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert a100.digest != l4.digest
    assert a100.plan_key == l4.plan_key
    salted = RECIPE.model_copy(update={"salt": "again"})
    assert a100.plan_key != spec_of(gpu="a100", recipe=salted).plan_key


def test_turing_has_a_plan_of_its_own() -> None:
    t4 = spec_of()
    assert t4.compute_capabilities == ()
    assert t4.plan_key != spec_of(gpu="a100").plan_key


def test_only_compute_capabilities_with_the_precision_share() -> None:
    a100 = GpuTarget(label="a100", compute_capability="8.0")
    l4 = GpuTarget(label="l4", compute_capability="8.9")
    rtx = toolchain("tensorrt-rtx")
    assert rtx.carries(a100, "fp8") == ()
    assert rtx.carries(l4, "fp8") == ("8.9", "12.0")


def test_a_native_plan_is_one_gpus_and_its_digest_is_what_it_was_before_plans_were_shared() -> None:
    native = spec_of(toolchain=TRT)
    assert native.plan_key == native.digest
    assert "compute_capabilities" not in native.model_dump(mode="json")
    assert BuildSpec.model_validate(native.model_dump(mode="json")) == native
