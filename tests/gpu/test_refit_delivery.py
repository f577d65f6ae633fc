"""New weights without a build, as decision 0281 has it: the farm refits, a host refits.

Everything is real but the model source: store, cache, children, TensorRT 8.6, the GPU. Prints bytes
and seconds against a rebuild and a whole download.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builds
import numpy as np
import onnx
import onnxruntime
import pytest
import small_models
import tiny_onnx
from fake_builds import made
from onnx import TensorProto, helper, numpy_helper
from refit_jobs import job

import enginefarm
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BuildSpec, MinOptMax
from enginefarm.run.artifacts import open_artifact
from enginefarm.run.running import OpenRequest
from enginefarm.store import embedded, open_store
from enginefarm.store.cache import BlobCache
from enginefarm.store.site import Site

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

LAYERS, CHANNELS, CLASSES = 20, 64, 16
SIDES = {"resnet50": 64}


def feed(head: str) -> Any:
    side = SIDES.get(head, 32)
    return np.random.default_rng(7).standard_normal((4, 3, side, side)).astype(np.float32)


CLOSE = {"fp32": 0.99999, "fp16": 0.999}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    server = embedded.start(tmp_path / "store")
    for name, value in (
        ("ENGINEFARM_STORE", f"s3://{embedded.BUCKET}/refit"),
        ("AWS_ENDPOINT_URL", server.endpoint),
        ("AWS_ACCESS_KEY_ID", server.credentials.access_key),
        ("AWS_SECRET_ACCESS_KEY", server.credentials.secret_key),
    ):
        monkeypatch.setenv(name, value)
    yield Site(open_store(), BlobCache(tmp_path / "farm"))
    embedded.stop(tmp_path / "store")


def network(path: Path, dtype: Any, head: str, seed: int, head_seed: int) -> Path:
    """Convolutions and a head, `conv` (1 x 1) or `gemm`, or a `resnet50`; x and y are FP32.

    seed: of the convolutions' weights. head_seed: of the last layer's.
    """
    if head == "resnet50":
        return small_models.residual(path, dtype, seed=seed, head_seed=head_seed)
    body, last = np.random.default_rng(seed), np.random.default_rng(head_seed)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Cast", ["x"], ["r0"], "cast_in", to=kind)]
    weights: dict[str, Any] = {}
    width = 3
    for index in range(LAYERS):
        scale = np.sqrt(2 / (9 * width))
        weights[f"w{index}"] = scale * body.standard_normal((CHANNELS, width, 3, 3))
        weights[f"b{index}"] = 0.1 * body.standard_normal(CHANNELS)
        inputs = [f"r{index}", f"w{index}", f"b{index}"]
        nodes += [
            helper.make_node("Conv", inputs, [f"c{index}"], f"conv{index}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{index}"], [f"r{index + 1}"], f"relu{index}"),
        ]
        width = CHANNELS
    nodes.append(helper.make_node("GlobalAveragePool", [f"r{LAYERS}"], ["pooled"], "pool"))
    weights["bh"] = last.standard_normal(CLASSES)
    if head == "conv":
        weights["wh"] = last.standard_normal((CLASSES, CHANNELS, 1, 1))
        nodes.append(helper.make_node("Conv", ["pooled", "wh", "bh"], ["scores"], "head"))
    else:
        weights["wh"] = last.standard_normal((CLASSES, CHANNELS))
        nodes += [
            helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
            helper.make_node("Gemm", ["flat", "wh", "bh"], ["scores"], "head", transB=1),
        ]
    nodes.append(helper.make_node("Cast", ["scores"], ["y"], "cast_out", to=TensorProto.FLOAT))
    shape = ["n", CLASSES, 1, 1] if head == "conv" else ["n", CLASSES]
    return tiny_onnx.save(
        path,
        nodes,
        [tiny_onnx.value("x", ["n", 3, 32, 32], TensorProto.FLOAT)],
        [tiny_onnx.value("y", shape, TensorProto.FLOAT)],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()],
    )


def wanted(model: Path, x: Any) -> Any:
    """What the graph computes, by ONNX Runtime in FP32 whatever its type."""
    loaded = onnx.load(model)
    for weight in loaded.graph.initializer:
        wide = numpy_helper.to_array(weight).astype(np.float32)
        weight.CopyFrom(numpy_helper.from_array(wide, weight.name))
    for node in loaded.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast":
                attribute.i = TensorProto.FLOAT
    session = onnxruntime.InferenceSession(
        loaded.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def outputs(plan: Path, x: Any) -> Any:
    with open_artifact(OpenRequest(plan=plan, toolchain="tensorrt")) as artifact:
        running = artifact.running("refit")
        running.bind({"x": x})
        running.iterate()
        found = running.outputs()["y"]
        running.close()
    return found


def cosine(a: Any, b: Any) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return action(), time.monotonic() - began


@pytest.mark.parametrize(
    ("precision", "head"),
    [("fp32", "conv"), ("fp16", "conv"), ("fp32", "gemm"), ("fp16", "resnet50")],
)
def test_new_weights_reach_a_host_without_a_build(
    site: Site, tmp_path: Path, precision: str, head: str
) -> None:
    dtype = {"fp32": np.float32, "fp16": np.float16}[precision]
    options = {"precision": precision, "optimization_level": 1, "refit": True}
    x = feed(head)
    shapes = {"x": MinOptMax(min=(1, *x.shape[1:]), opt=x.shape, max=(8, *x.shape[1:]))}
    spec: BuildSpec = builds.request(tmp_path / "x", tmp_path, shapes, **options).spec

    def publish(seed: int, head_seed: int, salt: str = "") -> tuple[Manifest, Any, float]:
        model = network(tmp_path / f"{seed}-{head_seed}.onnx", dtype, head, seed, head_seed)
        y = wanted(model, x)
        reference = tmp_path / f"{seed}-{head_seed}.npz"
        np.savez(reference, **{"0000/input/x": x, "0000/output/y": y})
        asked = job(site, spec.model_copy(update={"salt": salt}), model, reference)
        manifest, seconds = timed(lambda: made(site, asked))
        return manifest, y, seconds

    host, stranger = BlobCache(tmp_path / "host"), BlobCache(tmp_path / "stranger")
    skeleton, before, built_s = publish(1, 1)
    assert enginefarm.pull("model", gpu=builds.LABEL, cache=host).delivery == ""
    print(f"\n{precision} {head}: {skeleton.engine.size_bytes:,} bytes, built in {built_s:.1f} s")
    for what, seeds in (("last layer", (1, 2)), ("all layers", (3, 3))):
        manifest, y, refit_s = publish(*seeds)
        print(f"{what}: published in {refit_s:.1f} s; {'; '.join(manifest.notes)}")
        pulled, here_s = timed(lambda: enginefarm.pull("model", gpu=builds.LABEL, cache=host))
        whole, whole_s = timed(lambda: enginefarm.pull("model", gpu=builds.LABEL, cache=stranger))
        print(f"host, {here_s:.2f} s: {pulled.delivery}")
        print(f"host without the plan, {whole_s:.2f} s: {whole.delivery}")
        assert pulled.manifest == manifest
        assert pulled.path.read_bytes() == whole.path.read_bytes()
        found = outputs(pulled.path, x)
        new, old = cosine(found, y), cosine(found, before)
        print(f"cosine to the new weights {new:.6f}, to the old {old:.6f}")
        assert old < CLOSE[precision] < new
        if head == "conv":
            assert manifest.notes[0].startswith(f"refitted from {skeleton.engine.digest[:12]}")
        if what == "last layer" and manifest.refit is not None:
            assert pulled.delivery.startswith("refitted from "), pulled.delivery
    _, _, rebuilt_s = publish(3, 3, salt="again")
    print(f"the same by a build: published in {rebuilt_s:.1f} s (with the timing cache)")
