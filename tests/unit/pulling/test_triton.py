"""The repository, read by Triton's own protobuf schema."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tritonclient
from google.protobuf import text_format
from sample_manifest import make_manifest

from enginefarm.documents.manifest import Manifest, TensorInfo
from enginefarm.documents.spec import MinOptMax, ShapeProfile
from enginefarm.errors import StoreMissing, ToolchainError, UsageError
from enginefarm.pulling import triton
from enginefarm.pulling.triton_places import place, write_files


def schema() -> Any:
    """tritonclient's model_config_pb2, by its file: its package needs grpc, the schema not."""
    path = Path(next(iter(tritonclient.__path__))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA = schema()


def parsed(files: tuple[triton.RepositoryFile, ...], path: str) -> Any:
    (content,) = [file.content for file in files if file.path == path]
    assert isinstance(content, bytes)
    return text_format.Parse(content.decode(), SCHEMA.ModelConfig())


def three() -> list[Manifest]:
    return [make_manifest(label=label, engine=label.encode()) for label in ("t4", "a100", "l4")]


def test_triton_reads_the_config() -> None:
    files = triton.repository(three(), name="model")
    config = parsed(files, "model/config.pbtxt")
    assert config.platform == "tensorrt_plan"
    assert config.max_batch_size == 32
    assert [(one.name, list(one.dims)) for one in config.input] == [("x", [3])]
    assert config.input[0].data_type == SCHEMA.TYPE_FP32
    assert [(one.name, list(one.dims)) for one in config.output] == [("y", [10])]
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    (group,) = config.instance_group
    assert list(group.profile) == ["0"]
    (warm,) = config.model_warmup
    assert warm.batch_size == 8
    assert list(warm.inputs["x"].dims) == [3]
    assert warm.inputs["x"].zero_data


def test_each_compute_capability_names_its_plan_and_no_default_exists() -> None:
    files = triton.repository(three(), name="model")
    config = parsed(files, "model/config.pbtxt")
    assert sorted(config.cc_model_filenames) == ["7.5", "8.0", "8.9"]
    plans = {file.path for file in files if not isinstance(file.content, bytes)}
    assert plans == {f"model/1/{name}" for name in config.cc_model_filenames.values()}
    assert config.default_model_filename == ""
    assert "model/1/model.plan" not in plans
    assert config.cc_model_filenames["7.5"].startswith("t4-fp16-")


def test_gpus_of_one_capability_get_a_repository_each() -> None:
    engines = [make_manifest(label=label) for label in ("a100", "a100-80gb", "t4")]
    files = triton.repository(engines, name="model")
    for label in ("a100", "a100-80gb", "t4"):
        config = parsed(files, f"{label}/model/config.pbtxt")
        assert [name.startswith(f"{label}-fp16-") for name in config.cc_model_filenames.values()]
        assert len(config.cc_model_filenames) == 1


def with_profiles(manifest: Manifest, *profiles: ShapeProfile) -> Manifest:
    return manifest.model_copy(
        update={"spec": manifest.spec.model_copy(update={"profiles": profiles})}
    )


def tensor(
    name: str, *dims: int | str | None, dtype: Any = "float32", role: Any = "input", **more: Any
) -> TensorInfo:
    """dims: sizes, names of dynamic dims, and None for one that nobody named."""
    return TensorInfo(
        name=name,
        dtype=dtype,
        role=role,
        shape=tuple(dim if isinstance(dim, int) else -1 for dim in dims),
        dims=tuple(None if isinstance(dim, int) else dim for dim in dims),
        **more,
    )


def test_two_profiles_and_two_dynamic_dims() -> None:
    def profile(name: str, longest: int) -> ShapeProfile:
        shape = MinOptMax(min=(1, 8), opt=(4, longest // 2), max=(16, longest))
        return ShapeProfile(name=name, shapes={"ids": shape, "mask": shape})

    tensors = (
        tensor("ids", "batch", "tokens", dtype="int64"),
        tensor("mask", "batch", "tokens", dtype="int64"),
        tensor("embedding", "batch", 384, dtype="float16", role="output"),
    )
    manifest = with_profiles(make_manifest(), profile("short", 64), profile("long", 512))
    manifest = manifest.model_copy(update={"tensors": tensors})
    config = parsed(triton.repository([manifest], name="encoder"), "encoder/config.pbtxt")
    assert [list(one.dims) for one in config.input] == [[-1], [-1]]
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert [one.name for one in config.model_warmup] == ["short", "long"]
    assert list(config.model_warmup[1].inputs["mask"].dims) == [256]
    assert config.max_batch_size == 16


def test_a_model_without_a_batch_dim_is_not_batched() -> None:
    tensors = (
        TensorInfo(name="x", dtype="float32", shape=(1, 3, -1), role="input"),
        TensorInfo(name="y", dtype="float32", shape=(1, 10), role="output"),
    )
    shape = MinOptMax(min=(1, 3, 8), opt=(1, 3, 16), max=(1, 3, 32))
    manifest = with_profiles(make_manifest(), ShapeProfile(name="only", shapes={"x": shape}))
    manifest = manifest.model_copy(update={"tensors": tensors})
    config = parsed(triton.repository([manifest], name="model"), "model/config.pbtxt")
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 3, -1]
    assert not config.HasField("dynamic_batching")


X = tensor("x", "batch", 3)


@pytest.mark.parametrize(
    "tensors",
    [
        (X, tensor("rows", None, 7, role="output")),  # as of NonMaxSuppression
        (X, tensor("rows", "unk__0", 7, role="output")),
        (X, tensor("logits", "batch*tokens", 50, role="output")),
        (X, tensor("gallery", "gallery", 3), tensor("y", "batch", "gallery", role="output")),
        (tensor("x", "tokens", 3), tensor("y", "tokens", 5, role="output")),
        (X, tensor("h", 2, "batch", 3), tensor("y", "batch", 5, role="output")),
        (X, tensor("scale"), tensor("y", "batch", 5, role="output")),
        (X, tensor("dets", 100, 5, role="output")),
        (X, tensor("y", "batch", 5, role="output").model_copy(update={"dims": ()})),
    ],
)
def test_a_leading_dynamic_dim_that_is_not_the_batch_is_written_out(
    tensors: tuple[TensorInfo, ...],
) -> None:
    sizes = {"batch": (1, 8, 32), "tokens": (1, 8, 32), "gallery": (1, 8, 32)}

    def ends(one: TensorInfo) -> MinOptMax:
        named = zip(one.shape, one.dims, strict=True)
        shapes = [sizes[dim] if dim else (size,) * 3 for size, dim in named]
        low, opt, high = zip(*shapes, strict=True) if shapes else ((), (), ())
        return MinOptMax(min=low, opt=opt, max=high)

    shapes = {one.name: ends(one) for one in tensors if one.role == "input"}
    made = with_profiles(make_manifest(), ShapeProfile(name="only", shapes=shapes))
    made = made.model_copy(update={"tensors": tensors})
    config = parsed(triton.repository([made], name="m"), "m/config.pbtxt")
    assert config.max_batch_size == 0
    for told, one in zip((*config.input, *config.output), tensors, strict=True):
        assert list(told.dims) == list(one.shape or (1,))
        assert told.HasField("reshape") == (not one.shape)
    (warm,) = config.model_warmup
    for name, told in warm.inputs.items():
        assert list(told.dims) == list(shapes[name].opt or (1,)), "as the input's own dims"


def test_a_shape_tensor_is_told_as_one() -> None:
    tensors = (
        tensor("x", 1, 3, 16, 16),
        tensor("size", 2, dtype="int64", is_shape_tensor=True),
        tensor("y", 1, 4, None, None, role="output"),
    )
    made = make_manifest().model_copy(update={"tensors": tensors})
    fixed = MinOptMax(min=(1, 3, 16, 16), opt=(1, 3, 16, 16), max=(1, 3, 16, 16))
    two = MinOptMax(min=(2,), opt=(2,), max=(2,))
    made = with_profiles(made, ShapeProfile(name="only", shapes={"x": fixed, "size": two}))
    config = parsed(triton.repository([made], name="m"), "m/config.pbtxt")
    assert [one.is_shape_tensor for one in config.input] == [False, True]


@pytest.mark.parametrize(
    ("toolchain", "build"),
    [("tensorrt-rtx", "1.7.1.116"), ("ort-trt", "1.31.1+tensorrt.10.16.1.11")],
)
def test_what_triton_cannot_load_is_refused_and_says_what_to_build(
    toolchain: str, build: str
) -> None:
    engine = make_manifest(toolchain=toolchain, build=build)
    with pytest.raises(ToolchainError, match=toolchain) as caught:
        triton.repository([engine], name="model")
    assert "toolchain `tensorrt`" in caught.value.fix


def test_engines_of_different_models_are_not_mixed() -> None:
    other = make_manifest(label="l4").model_copy(update={"tensors": ()})
    with pytest.raises(ToolchainError, match="different inputs"):
        triton.repository([make_manifest(), other], name="model")


def test_one_precision_for_all_gpus() -> None:
    engines = [make_manifest(label=label, precision="int8") for label in ("t4", "l4")]
    engines.append(make_manifest(label="t4", precision="fp16"))
    assert {one.precision for one in triton.choose(engines, "model", None)} == {"int8"}
    assert len(triton.choose(engines, "model", "fp16")) == 1
    with pytest.raises(StoreMissing, match="fp8"):
        triton.choose(engines, "model", "fp8")


def test_a_new_engine_replaces_the_old_plan_in_the_folder(tmp_path: Path) -> None:
    for engine in (b"old", b"new"):
        manifest = make_manifest(engine=engine)
        blob = tmp_path / engine.decode()
        blob.write_bytes(engine)
        files = triton.repository([manifest], name="model")
        write_files(place(str(tmp_path / "repo")), files, {manifest.engine.digest: blob})
        triton.remove_old_plans(files, tmp_path / "repo")
    (plan,) = (tmp_path / "repo" / "model" / "1").iterdir()
    assert plan.read_bytes() == b"new"
    config = (tmp_path / "repo" / "model" / "config.pbtxt").read_text()
    assert plan.name in config


@pytest.mark.parametrize(
    "odd", ['say "cheese"', "in\\put", "a\nb", "serving/\u8f93\u5165 1:0", "\x01\x7f", "a\\"]
)
def test_any_name_of_a_tensor_is_read_back_as_it_is(odd: str) -> None:
    made = make_manifest()
    shape = MinOptMax(min=(1, 3), opt=(8, 3), max=(32, 3))
    made = made.model_copy(
        update={
            "tensors": (
                tensor(odd, "batch", 3),
                tensor(f"{odd} out", "batch", 5, role="output"),
            ),
            "spec": made.spec.model_copy(
                update={"profiles": (ShapeProfile(name="default", shapes={odd: shape}),)}
            ),
        }
    )
    config = parsed(triton.repository([made], name="m"), "m/config.pbtxt")
    assert [one.name for one in config.input] == [odd]
    assert [one.name for one in config.output] == [f"{odd} out"]
    assert list(config.model_warmup[0].inputs) == [odd]


@pytest.mark.parametrize("name", ['../../x"y', "", "a/b", ".hidden", "m\n"])
def test_a_model_name_that_is_not_one_folder_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a model"):
        triton.repository(three(), name=name)


def test_the_config_names_the_version_that_is_served() -> None:
    files = triton.repository(three(), name="model", version=7)
    config = parsed(files, "model/config.pbtxt")
    assert list(config.version_policy.specific.versions) == [7]
    assert {file.path.split("/")[1] for file in files} == {"7", "config.pbtxt"}


def test_an_image_is_named_with_its_source_or_said_to_be_unknown() -> None:
    known = triton.image_words("10.14.1.48")
    assert "tritonserver:26.07-trtllm-python-py3 has it" in known
    assert "compatibility.md, 2026-08-19" in known
    assert "does not say whether these images load plans" in known
    for build in ("10.14.1.49", "10.14.1", "10.14.1.48.1", ""):
        assert "No image with it is known" in triton.image_words(build), build
        assert triton.tags(build) == ()
