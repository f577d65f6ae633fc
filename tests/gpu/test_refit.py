"""What a refit by TensorRT 8.6 does to engines of our graphs: what decision 0281 counts on.

These tests build with the toolchain's own steps plus BuilderFlag.REFIT, set weights by the names of
the graph's initializers, and run the result. The package's own road is test_refit_delivery.py's.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import builds
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from small_models import convolutions, residual

from enginefarm.digest import sha256_bytes
from enginefarm.documents.spec import MinOptMax
from enginefarm.run.artifacts import open_artifact
from enginefarm.run.running import OpenRequest
from enginefarm.run.trt import Messages, make_logger
from enginefarm.toolchains import builder_api, parsing, tensorrt

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

SHAPES = {
    "conv": builds.CONV,
    "efficientnet_lite0": builds.PICTURES,
    "resnet50": {"x": MinOptMax(min=(1, 3, 64, 64), opt=(4, 3, 64, 64), max=(8, 3, 64, 64))},
}
CLOSE = {"fp32": 0.9999, "fp16": 0.999}


class Refitted(NamedTuple):
    """not_settable: initializers of floats that the engine does not know by name."""

    plan: bytes
    seconds: float
    known: int
    not_settable: tuple[str, ...]
    missing: tuple[str, ...]


def build(
    model: Path, work: Path, name: str, precision: str, *, refit: bool
) -> tuple[bytes, float]:
    work.mkdir()
    request = builds.request(model, work, SHAPES[name], precision=precision, optimization_level=1)
    trt: Any = tensorrt.load()
    messages = Messages()
    logger = make_logger(trt, messages)
    create = time.monotonic()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    parsing.parse_onnx(parser, network, model, messages, "tensorrt")
    config = tensorrt.make_config(trt, builder, request)
    builder_api.add_profiles(builder, config, network, request.spec.profiles)
    if precision == "fp16":
        builder_api.set_flag(trt, config, "FP16", "precision")
    if refit:
        builder_api.set_flag(trt, config, "REFIT", "refit")
    builder_api.write_plan(builder, network, config, work / "engine.plan", messages)
    return (work / "engine.plan").read_bytes(), time.monotonic() - create


def refitted(plan: bytes, model: Path) -> Refitted:
    """The plan with the weights of that graph."""
    trt: Any = tensorrt.load()
    logger = make_logger(trt, Messages())
    create = time.monotonic()
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    assert engine is not None
    assert engine.refittable
    refitter = trt.Refitter(engine, logger)
    known = set(refitter.get_all_weights())
    not_settable: list[str] = []
    for weight in onnx.load(model).graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        values = np.ascontiguousarray(numpy_helper.to_array(weight))
        if weight.name not in known:
            not_settable.append(weight.name)
        else:
            assert refitter.set_named_weights(weight.name, trt.Weights(values)), weight.name
    missing = tuple(refitter.get_missing_weights())
    assert refitter.refit_cuda_engine()
    made = bytes(memoryview(engine.serialize()))
    return Refitted(made, time.monotonic() - create, len(known), tuple(not_settable), missing)


def other_weights(model: Path, dest: Path) -> Path:
    """The same graph, each large weight of floats a little off: as after more training."""
    changed = onnx.load(model)
    random = np.random.default_rng(1)
    for weight in changed.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim > 1:
            noise = 0.2 * values.std() * random.standard_normal(values.shape)
            weight.CopyFrom(numpy_helper.from_array((values + noise).astype("f4"), weight.name))
    onnx.save(changed, dest)
    return dest


def changed(one: Path, other: Path) -> set[str]:
    """Names of the initializers whose values differ."""
    pairs = zip(onnx.load(one).graph.initializer, onnx.load(other).graph.initializer, strict=True)
    return {a.name for a, b in pairs if a != b}


def outputs(plan: bytes, path: Path, feeds: dict[str, Any]) -> tuple[Any, float]:
    """The first output, and the median milliseconds of a lone pass."""
    path.write_bytes(plan)
    with open_artifact(OpenRequest(plan=path, toolchain="tensorrt")) as artifact:
        running = artifact.running("refit")
        running.bind(feeds)
        times = [running.iterate().total for _ in range(120)][20:]
        found = next(iter(running.outputs().values()))
        running.close()
    return found, median(times)


def cosine(a: Any, b: Any) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["conv", "efficientnet_lite0", "resnet50"])
def test_a_refitted_plan_computes_the_other_weights(
    name: str,
    precision: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    if name == "conv":
        model = convolutions(tmp_path / "conv.onnx")
    elif name == "resnet50":
        model = residual(tmp_path / "resnet50.onnx", np.float32, seed=1, head_seed=1)
    else:
        model = request.getfixturevalue("models") / f"{name}.onnx"
    other = other_weights(model, tmp_path / "other.onnx")
    plain, _ = build(model, tmp_path / "plain", name, precision, refit=False)
    skeleton, built_s = build(model, tmp_path / "skeleton", name, precision, refit=True)
    first, again = refitted(skeleton, other), refitted(skeleton, other)
    ((key, shape),) = SHAPES[name].items()
    feeds = {key: np.random.default_rng(2).standard_normal(shape.opt).astype(np.float32)}
    session = onnxruntime.InferenceSession(str(other), providers=["CPUExecutionProvider"])
    wanted = session.run(None, feeds)[0]
    before, refittable_ms = outputs(skeleton, tmp_path / "skeleton.plan", feeds)
    _, plain_ms = outputs(plain, tmp_path / "plain.plan", feeds)
    found, refitted_ms = outputs(first.plan, tmp_path / "refitted.plan", feeds)
    print(
        f"\n{name} {precision}: plan {len(plain)} bytes, refittable {len(skeleton)}, graph "
        f"{other.stat().st_size}; build {built_s:.2f} s, refit {first.seconds:.2f} s; "
        f"{first.known} weights by name, not settable "
        f"{first.not_settable}, missing {first.missing}; {plain_ms:.4f} ms plain, "
        f"{refittable_ms:.4f} refittable, {refitted_ms:.4f} refitted; refitted twice: "
        f"{'the same bytes' if first.plan == again.plan else 'other bytes'} "
        f"{sha256_bytes(first.plan)[:12]}; cosine to the new weights {cosine(found, wanted):.6f}, "
        f"of the skeleton {cosine(before, wanted):.6f}"
    )
    assert first.missing == ()
    stay = set(first.not_settable) & changed(model, other)
    assert not stay, "their values would stay those of the skeleton"
    assert cosine(before, wanted) < CLOSE[precision] < cosine(found, wanted)
