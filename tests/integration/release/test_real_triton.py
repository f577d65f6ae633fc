"""A rollout in a real Triton: the server of nvidia-pytriton, on a CPU, with Python models.

    pip install nvidia-pytriton        in an environment of its own, of the same Python
    ENGINEFARM_TEST_TRITON=…/site-packages/pytriton pytest THIS_FILE

Without it these tests are skipped. No TensorRT plan is served: that needs a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from enginefarm.documents.comparing import ComparisonRules
from enginefarm.documents.manifest import TensorInfo
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import GateError, TritonError
from enginefarm.pulling.triton import RepositoryFile
from enginefarm.pulling.triton_places import Folder
from enginefarm.release.triton_replay import RolloutCandidate, RolloutLimits
from enginefarm.release.triton_server import TritonServer
from enginefarm.release.triton_trial import Flip, try_out
from enginefarm.store.weed import free_ports


def pytriton() -> Path | None:
    named = os.environ.get("ENGINEFARM_TEST_TRITON")
    spec = None if named else find_spec("pytriton")
    return Path(named) if named else Path(spec.origin).parent if spec and spec.origin else None


PYTRITON = pytriton()
pytestmark = pytest.mark.skipif(
    PYTRITON is None,
    reason="no real Triton: install nvidia-pytriton, and name it in ENGINEFARM_TEST_TRITON",
)

CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 8
input {{ name: "x" data_type: TYPE_FP32 dims: [ 3 ] }}
input {{ name: "half" data_type: TYPE_FP16 dims: [ 3 ] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ 3 ] }}
output {{ name: "total" data_type: TYPE_INT64 dims: [ 1 ] reshape {{ shape: [ ] }} }}
instance_group {{ count: 1 kind: KIND_CPU }}
version_policy {{ specific {{ versions: [ {version} ] }} }}
"""
MODEL = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        if args["model_name"] in {fails_as}:
            raise RuntimeError("this version cannot be loaded")
        self.scale = np.float32({scale})

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb.get_input_tensor_by_name(request, "x").as_numpy()
            half = pb.get_input_tensor_by_name(request, "half").as_numpy()
            y = pb.Tensor("y", x * self.scale + half.astype(np.float32))
            total = pb.Tensor("total", np.full(len(x), 7, np.int64))
            answers.append(pb.InferenceResponse([y, total]))
        return answers
"""
Files = Callable[[str, int], tuple[RepositoryFile, ...]]


def files(scale: float, fails_as: tuple[str, ...] = ()) -> Files:
    def of(name: str, version: int) -> tuple[RepositoryFile, ...]:
        model = MODEL.format(scale=scale, fails_as=fails_as)
        config = CONFIG.format(name=name, version=version)
        return (
            RepositoryFile(f"{name}/{version}/model.py", model.encode()),
            RepositoryFile(f"{name}/config.pbtxt", config.encode()),
        )

    return of


def start(folder: Path, mode: str, *more: str) -> tuple[subprocess.Popen[bytes], str]:
    """A real tritonserver on the repository in `folder`, ready."""
    assert PYTRITON is not None
    server = PYTRITON / "tritonserver"
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True, exist_ok=True)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    for path in (*(server / "backends" / "python").iterdir(), stub):
        (backend / path.name).unlink(missing_ok=True)
        (backend / path.name).symlink_to(path)
    http, grpc, metrics = free_ports(3)
    packages = PYTRITON.parent
    path = f"{packages.parents[2] / 'bin'}:{os.environ['PATH']}"  # its Python's, which has numpy
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{packages / 'nvidia_pytriton.libs'}"
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [
                str(server / "bin" / "tritonserver"),
                f"--model-repository={folder / 'repo'}",
                f"--model-control-mode={mode}",
                f"--backend-directory={folder / 'backends'}",
                *("--http-address=127.0.0.1", f"--http-port={http}"),
                *(f"--grpc-port={grpc}", f"--metrics-port={metrics}"),
                "--exit-timeout-secs=2",
                *more,
            ],
            env={**os.environ, "PATH": path, "LD_LIBRARY_PATH": libraries},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{http}"
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        try:
            if TritonServer(url).versions("m"):
                return process, url
        except TritonError:
            pass
        time.sleep(0.2)
    process.kill()
    process.wait()
    raise AssertionError((folder / "server.log").read_text()[-3000:])


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("triton")
    write(made / "repo", files(1.0)("m", 1))
    return made


def write(root: Path, made: tuple[RepositoryFile, ...]) -> None:
    for file in made:
        assert isinstance(file.content, bytes)
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).write_bytes(file.content)


@pytest.fixture(scope="module")
def triton(folder: Path) -> Iterator[str]:
    process, url = start(folder, "explicit", "--load-model=m")
    try:
        yield url
    finally:
        stop(process)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    """y = x + half, total = 7: what version 1 answers."""
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    half = x.astype(np.float16)
    arrays = {
        "0000/input/x": x,
        "0000/input/half": half,
        "0000/output/y": x + half.astype(np.float32),
        "0000/output/total": np.full(4, 7, np.int64),
    }
    np.savez(folder / "reference.npz", **arrays)  # type: ignore[arg-type]
    return folder / "reference.npz"


def tensor(name: str, dtype: object, role: object, *dims: int) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=(-1, *dims), role=role)  # type: ignore[arg-type]


def candidate(reference: Path, made: Files) -> RolloutCandidate:
    return RolloutCandidate(
        model="m",
        tensors=(
            tensor("x", "float32", "input", 3),
            tensor("half", "float16", "input", 3),
            tensor("y", "float32", "output", 3),
            tensor("total", "int64", "output"),
        ),
        batched=True,
        files=made,
        blobs={},
        reference=reference,
        budget=Budget(min_cosine=0.999, max_relative_l2=0.02),
        comparing=ComparisonRules(),
    )


LIMITS = RolloutLimits(latency_ratio=1000, requests=100)
"""Two busy cores say nothing about latency; the ratio itself is tested with a clock of our own."""


def served(url: str) -> int:
    one = np.ones((1, 3), np.float32)
    return TritonServer(url).infer("m", {"x": one, "half": one.astype(np.float16)}).version


def test_refused_flipped_and_gone_back(triton: str, folder: Path, reference: Path) -> None:
    server, repository = TritonServer(triton), Folder(folder / "repo")
    assert served(triton) == 1

    wrong = try_out(server, repository, candidate(reference, files(1.5)), LIMITS)
    assert [one.gate for one in wrong.refusals] == ["triton-outputs"]
    assert "relative L2 0.25" in wrong.refusals[0].detail
    broken = try_out(server, repository, candidate(reference, files(1, ("m.next",))), LIMITS)
    assert "this version cannot be loaded" in broken.refusals[0].detail
    assert served(triton) == 1
    assert server.versions("m.next") == ()
    assert not (folder / "repo" / "m.next").exists()

    late = candidate(reference, files(1.0, ("m",)))
    trial = try_out(server, repository, late, LIMITS)
    assert not trial.refusals
    with pytest.raises(GateError, match="version 1 serves again"):
        Flip(server, repository, late, trial).forward()
    assert served(triton) == 1

    good = candidate(reference, files(1.001))
    trial = try_out(server, repository, good, LIMITS)
    assert (trial.version, trial.refusals) == (2, ())
    flip = Flip(server, repository, good, trial)
    with asked_all_the_time(triton) as answered:
        assert flip.forward().verdict == "passed"
        assert served(triton) == 2
        flip.back()
        assert served(triton) == 1
    assert {1, 2} == set(answered), "both served, and every request had an answer"


@contextmanager
def asked_all_the_time(url: str) -> Iterator[list[int]]:
    """The versions that a client got meanwhile, which names none."""
    answered: list[int] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answered.append(served(url))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client)
        try:
            yield answered
        finally:
            stop.set()
        asking.result()  # raises what a request was refused with


def test_a_request_without_a_version_gets_the_highest_loaded_one(triton: str, folder: Path) -> None:
    """Why a candidate is tried under a name of its own."""
    for version in (1, 2):
        write(folder / "repo", files(float(version))("both", version))
    config = folder / "repo" / "both" / "config.pbtxt"
    config.write_text(config.read_text().replace("[ 2 ]", "[ 1, 2 ]"))
    server = TritonServer(triton)
    server.load("both")
    assert server.versions("both") == (1, 2)
    one = np.ones((1, 3), np.float32)
    inputs = {"x": one, "half": one.astype(np.float16)}
    assert server.infer("both", inputs).version == 2
    assert server.infer("both", inputs, 1).version == 1
    server.unload("both")


def test_another_mode_is_recognized(folder: Path, reference: Path) -> None:
    process, url = start(folder, "none")
    try:
        with pytest.raises(TritonError, match="does not allow models to be loaded") as caught:
            try_out(
                TritonServer(url),
                Folder(folder / "repo"),
                candidate(reference, files(1.0)),
                LIMITS,
            )
        assert "--model-control-mode=explicit" in caught.value.fix
    finally:
        stop(process)
