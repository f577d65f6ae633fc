"""Who can set new weights in a plan, and what that option does to the action key."""

from __future__ import annotations

from typing import Any

import pytest
from sample_manifest import make_spec

from enginefarm import toolchains
from enginefarm.documents.builder import BuilderOptions
from enginefarm.documents.spec import BuildSpec
from enginefarm.errors import ToolchainError
from enginefarm.names import PRECISIONS, TOOLCHAINS, loaded


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_does(precision: str) -> None:
    toolchains.check(make_spec(precision=precision, label="a100", refit=True))


@pytest.mark.parametrize(
    ("changes", "what", "why"),
    [
        ({"toolchain": "tensorrt-rtx"}, "toolchain tensorrt-rtx", "a machine with a GPU"),
        ({"toolchain": "ort-trt"}, "toolchain ort-trt", "context models"),
        ({"toolchain": "trtexec"}, "toolchain trtexec", "never tried here"),
        ({"precision": "int8"}, "int8", "calibration"),
        ({"precision": "fp8", "label": "l4"}, "fp8", "calibration"),
        ({"precision": "bf16"}, "bf16", "no bfloat16"),
        ({"sparse_weights": True}, "sparse_weights", "zeros"),
    ],
)
def test_others_are_refused_with_the_reason(changes: Any, what: str, why: str) -> None:
    asked: Any = {"label": "a100"} | changes
    spec = make_spec(**(asked | {"refit": True}))
    with pytest.raises(ToolchainError, match=f"^builder.refit: .*{what}") as caught:
        toolchains.check(spec)
    assert why in caught.value.why
    assert "leave out `refit`" in caught.value.fix
    toolchains.check(make_spec(**asked))


def test_each_row_says_how_or_why_not() -> None:
    for row in TOOLCHAINS.values():
        assert callable(loaded(row.refit)) if row.refit else row.no_refit
    assert {name for name, row in PRECISIONS.items() if not row.no_refit} == {"fp32", "fp16"}


def test_only_a_recipe_that_asks_for_it_has_another_action_key() -> None:
    def digest(options: BuilderOptions) -> str:
        return make_spec().model_copy(update={"builder": options.asked}).digest

    assert digest(BuilderOptions()) == digest(BuilderOptions(refit=False))
    assert digest(BuilderOptions()) != digest(BuilderOptions(refit=True))
    assert "refit" not in make_spec().model_dump(mode="json")["builder"]


def test_a_spec_that_an_earlier_version_wrote_keeps_its_digest() -> None:
    # Before decision 0153 every spec said so.
    written = make_spec(refit=False).canonical_json()
    assert b'"refit":false' in written
    assert BuildSpec.read(written).canonical_json() == written
