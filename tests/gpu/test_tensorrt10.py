"""toolchains/tensorrt.py on the real TensorRT 10 or 11.

Start it with that TensorRT first: PYTHONPATH=/opt/trt10 LD_LIBRARY_PATH=/opt/trt10/lib. What a
release lacks on this machine is skipped by name, and counts as not run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import convolutions

from enginefarm.documents.gpus import by_nvml_name
from enginefarm.documents.spec import MinOptMax, ShapeProfile
from enginefarm.errors import BuildError, EnginefarmError, HostError
from enginefarm.host.detect import first_gpu
from enginefarm.run.engine import Engine
from enginefarm.run.trt import Messages, create, make_logger
from enginefarm.toolchains import BuildRequest, builder_api, parsing, tensorrt
from enginefarm.toolchains.tensorrt import combine
from tests.specs import spec

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200)]

CONV = {"x": MinOptMax(min=(1, 3, 16, 16), opt=(2, 3, 16, 16), max=(8, 3, 16, 16))}
EDGE, JIT = "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"
OPTIONS: dict[str, dict[str, Any]] = {
    "level 0": {"optimization_level": 0},
    "level 5": {"optimization_level": 5},
    "workspace": {"workspace_mib": 64},
    "same compute capability": {"compatibility": "same_compute_capability"},
    "ampere plus": {"compatibility": "ampere_plus"},
    "version compatible": {"version_compatible": True},
    "sparse": {"sparse_weights": True},
    "tactic sources": {"tactic_sources": (EDGE, JIT)},
    "one tactic source": {"tactic_sources": (JIT,)},
}
FLAGS = {
    "version_compatible": "VERSION_COMPATIBLE",
    "sparse_weights": "SPARSE_WEIGHTS",
}


@pytest.fixture(scope="module")
def trt() -> Any:
    loaded = tensorrt.load()
    if tensorrt.major(loaded.__version__) < 10:
        pytest.skip(f"not run: TensorRT {loaded.__version__} is on PYTHONPATH, not 10 or 11")
    return loaded


@pytest.fixture(scope="module")
def messages() -> Messages:
    return Messages()


@pytest.fixture(scope="module")
def logger(trt: Any, messages: Messages) -> Any:
    made = make_logger(trt, messages)
    trt.init_libnvinfer_plugins(made, "")
    return made


@pytest.fixture(scope="module")
def builder(trt: Any, logger: Any, messages: Messages) -> Any:
    return create("the builder", trt.Builder, logger, messages=messages)


def request(
    folder: Path, version: str, precision: str = "fp32", onnx: Path | None = None, **options: Any
) -> BuildRequest:
    folder.mkdir(parents=True, exist_ok=True)
    gpu = first_gpu()
    row = by_nvml_name(gpu.name) if gpu else None
    assert row is not None
    made = spec(
        build=version,
        precision=precision,
        gpu=(row.label, row.compute_capability),
        profiles=(ShapeProfile(name="default", shapes=CONV),),
        **options,
    )
    onnx = onnx or convolutions(folder / "conv.onnx", layers=3)
    return BuildRequest(spec=made, onnx=onnx, work_dir=folder)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_kept_and_read_back(
    trt: Any, builder: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    asked = request(tmp_path, trt.__version__, **options)
    config = tensorrt.make_config(trt, builder, asked)
    wish = asked.spec.builder
    assert config.builder_optimization_level == wish.optimization_level
    level = tensorrt.COMPATIBILITY[wish.compatibility]
    assert config.hardware_compatibility_level == getattr(trt.HardwareCompatibilityLevel, level)
    for option, flag in FLAGS.items():
        assert config.get_flag(getattr(trt.BuilderFlag, flag)) is getattr(wish, option)
    if wish.workspace_mib:
        pool = trt.MemoryPoolType.WORKSPACE
        assert config.get_memory_pool_limit(pool) == wish.workspace_mib << 20
    if wish.tactic_sources:
        mask = sum(1 << int(getattr(trt.TacticSource, name)) for name in wish.tactic_sources)
        assert config.get_tactic_sources() == mask


def test_networks_are_strongly_typed(trt: Any, builder: Any, tmp_path: Path) -> None:
    network = builder.create_network(tensorrt.network_flags(trt))
    if tensorrt.major(trt.__version__) < 11:
        assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def graphs() -> list[Path]:
    folder = os.environ.get("ENGINEFARM_GPU_GRAPHS")
    return sorted(Path(folder).glob("*.onnx")) if folder else []


@pytest.mark.parametrize("onnx", graphs() or [None], ids=lambda one: one.stem if one else "none")
def test_graphs_of_every_precision_are_parsed_and_supported(
    trt: Any, builder: Any, logger: Any, messages: Messages, tmp_path: Path, onnx: Path | None
) -> None:
    if onnx is None:
        pytest.skip("not run: ENGINEFARM_GPU_GRAPHS names no folder of graphs")
    network = builder.create_network(tensorrt.network_flags(trt))
    parser = create("the parser", trt.OnnxParser, network, logger, messages=messages)
    parsing.parse_onnx(parser, network, onnx, messages, "tensorrt")
    print(onnx.stem, network.num_layers, "layers")
    assert network.num_layers > 0
    assert builder_api.network_tensors(network, onnx)  # as the graph declares them
    # The bindings do not keep the network alive for its parser.
    other = builder.create_network(tensorrt.network_flags(trt))
    second = create("the parser", trt.OnnxParser, other, logger, messages=messages)
    assert second.supports_model_v2(onnx.read_bytes(), str(onnx))


def test_timing_caches_are_made_combined_and_refused(
    trt: Any, builder: Any, messages: Messages, tmp_path: Path
) -> None:
    config = tensorrt.make_config(trt, builder, request(tmp_path, trt.__version__))
    assert not tensorrt.use_timing_cache(config, None, messages)
    saved = tensorrt.save_timing_cache(config, tmp_path / "cache")
    assert saved is not None
    data = saved.read_bytes()
    assert data
    assert tensorrt.use_timing_cache(config, saved, messages)
    (tmp_path / "bad").write_bytes(b"not a cache" * 20)
    assert not tensorrt.use_timing_cache(config, tmp_path / "bad", messages)
    assert combine(data, data), "two empty ones of one device"
    assert combine(data, b"not a cache" * 20) is None


CHILD = """
import json, sys
from pathlib import Path
from enginefarm.errors import EnginefarmError
from enginefarm.run.trt import Messages, create, make_logger
from enginefarm.toolchains import tensorrt
try:
    trt = tensorrt.load()
    messages = Messages(echo=False)
    create("TensorRT's builder", trt.Builder, make_logger(trt, messages), messages=messages)
except EnginefarmError as error:
    print(json.dumps(error.fields()))
    sys.exit(error.exit_code)
"""


def child(**environment: str) -> tuple[int, dict[str, str], str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    lines = done.stdout.strip().splitlines()
    said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    print(done.returncode, said, done.stderr[-500:])
    return done.returncode, said, done.stderr


def test_a_hidden_gpu_is_the_hosts_error(trt: Any) -> None:
    code, said, stderr = child(CUDA_VISIBLE_DEVICES="")
    assert code in {60, 61}, stderr
    assert "does not start" in said["what"]
    assert "Traceback" not in stderr


def test_a_library_that_is_missing_is_named(trt: Any, tmp_path: Path) -> None:
    folders = [Path(one) for one in os.environ.get("LD_LIBRARY_PATH", "").split(":") if one]
    found = next((one for one in folders if [*one.glob("libnvonnxparser.so.*")]), None)
    if found is None:
        pytest.skip("not run: this TensorRT's libraries are not in a folder of LD_LIBRARY_PATH")
    libraries, site = tmp_path / "libraries", tmp_path / "site"
    libraries.mkdir()
    for library in found.glob("libnv*.so.*"):
        if not library.name.startswith("libnvonnxparser"):
            (libraries / library.name).symlink_to(library)
    # The bindings also look in ../lib from where they lie, so they lie elsewhere here.
    shutil.copytree(Path(trt.__file__).parent, site / Path(trt.__file__).parent.name)
    code, said, stderr = child(
        LD_LIBRARY_PATH=str(libraries), PYTHONPATH=f"{site}:{os.environ.get('PYTHONPATH', '')}"
    )
    assert code == HostError.exit_code, stderr
    assert "libnvonnxparser.so" in said["fix"]


@pytest.fixture(scope="module")
def built(trt: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole builds. The Maven artifact has no builder resource of any architecture."""
    folder = tmp_path_factory.mktemp("built")
    asked = request(folder, trt.__version__, optimization_level=1)
    try:
        return tensorrt.TensorRT().build(asked).plan
    except HostError as error:
        if "libnvinfer_builder_resource" not in error.fix:
            raise
        pytest.skip(f"not run: {error.why}")


def test_the_build_runs_and_agrees(built: Path) -> None:
    import onnxruntime

    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    session = onnxruntime.InferenceSession(
        str(built.with_name("conv.onnx")), providers=["CPUExecutionProvider"]
    )
    wanted = np.asarray(session.run(None, feeds)[0], np.float64).ravel()
    with Engine(built, toolchain="tensorrt") as engine:
        found = engine.run(feeds)["y"].ravel().astype(np.float64)
    assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.9999


def test_a_release_that_lacks_its_builder_resource_says_which(trt: Any, tmp_path: Path) -> None:
    asked = request(tmp_path, trt.__version__)
    refused: EnginefarmError | None = None
    try:
        tensorrt.TensorRT().build(asked)
    except EnginefarmError as error:
        refused = error
    if refused is None:
        pytest.skip("not run: this release has its builder resource")
    assert type(refused) is not BuildError, "the network is not at fault"
    assert "libnvinfer_builder_resource" in refused.what + refused.why + refused.fix
