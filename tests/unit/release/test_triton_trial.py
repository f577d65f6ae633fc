"""A rollout against `triton_stub`, a small server that speaks Triton's protocol (no real Triton;
that one is in tests/integration/release/test_real_triton.py)."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_stub import Stub, serving

from enginefarm.documents.comparing import ComparisonRules, OutputComparison, Part
from enginefarm.documents.manifest import TensorInfo
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import GateError, TritonError
from enginefarm.pulling.triton import RepositoryFile
from enginefarm.pulling.triton_places import Folder
from enginefarm.release import triton_server
from enginefarm.release.triton_replay import RolloutCandidate, RolloutLimits
from enginefarm.release.triton_server import TritonServer
from enginefarm.release.triton_trial import Flip, Trial, try_out

BATCH = ("batch", None)
TENSORS = (
    TensorInfo(name="x", dtype="float32", shape=(-1, 3), role="input", dims=BATCH),
    TensorInfo(name="y", dtype="float32", shape=(-1, 3), role="output", dims=BATCH),
)
CONFIG = 'name: "{}"\nversion_policy {{ specific {{ versions: [ {} ] }} }}\nvalue: "e.plan"\n'


def files(plan: dict[str, Any]) -> Callable[[str, int], tuple[RepositoryFile, ...]]:
    def of(name: str, version: int) -> tuple[RepositoryFile, ...]:
        return (
            RepositoryFile(f"{name}/{version}/e.plan", json.dumps(plan).encode()),
            RepositoryFile(f"{name}/config.pbtxt", CONFIG.format(name, version).encode()),
        )

    return of


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    """Serves version 1 of `m`, which answers y = x."""
    for file in files({"scale": 1.0})("m", 1):
        path = tmp_path / "repo" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        assert isinstance(file.content, bytes)
        path.write_bytes(file.content)
    with serving(tmp_path / "repo") as found:
        found.load("m")
        yield found


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    arrays = {f"{i:04d}/{kind}/{name}": x[i] for i in (0, 1) for kind, name in KINDS}
    np.savez(tmp_path / "reference.npz", **arrays)
    return tmp_path / "reference.npz"


KINDS = (("input", "x"), ("output", "y"))


def candidate(reference: Path, **plan: Any) -> RolloutCandidate:
    return RolloutCandidate(
        model="m",
        tensors=TENSORS,
        batched=True,
        files=files({"scale": 1.0, **plan}),
        blobs={},
        reference=reference,
        budget=Budget(min_cosine=0.999, max_relative_l2=0.02),
        comparing=ComparisonRules(),
    )


def tried(stub: Stub, wanted: RolloutCandidate, **limits: Any) -> Trial:
    settings = RolloutLimits(
        **{"latency_ratio": 1.1, "requests": 100, "clock": stub.clock, **limits}
    )
    return try_out(TritonServer(stub.url), Folder(stub.repository), wanted, settings)


def flip(stub: Stub, wanted: RolloutCandidate, trial: Trial) -> Flip:
    return Flip(TritonServer(stub.url), Folder(stub.repository), wanted, trial)


def what_serves(stub: Stub) -> tuple[int, float]:
    """The version that a client gets, and its answer to 1."""
    answer = TritonServer(stub.url).infer("m", {"x": np.ones((1, 3), np.float32)})
    return answer.version, float(answer.outputs["y"][0, 0])


def tree(stub: Stub) -> dict[str, bytes]:
    root = stub.repository
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def refusal(stub: Stub, wanted: RolloutCandidate, **limits: Any) -> str:
    """What refused it; version 1 still serves, and the repository is as before."""
    before = tree(stub)
    trial = tried(stub, wanted, **limits)
    (found,) = trial.refusals
    assert found is trial.gates[-1], "nothing is tried after a refusal"
    assert what_serves(stub) == (1, 1.0)
    assert set(stub.loaded) == {"m"}
    assert tree(stub) == before
    return f"{found.gate}: {found.detail}"


def test_a_version_that_passes_takes_the_place_of_the_one_before(
    stub: Stub, reference: Path
) -> None:
    wanted = candidate(reference, scale=1.001)
    trial = tried(stub, wanted)
    assert [one.gate for one in trial.gates] == [
        *("triton-load", "triton-interface", "triton-outputs", "triton-latency")
    ]
    assert {one.verdict for one in trial.gates} == {"passed"}
    assert what_serves(stub) == (1, 1.0), "a trial changes nothing for clients"
    asked = {(model, answered) for model, _, answered in stub.answered}
    assert asked == {("m", 1), ("m.next", 2)}, "no client's name reached the new one"
    result = flip(stub, wanted, trial).forward()
    assert result.detail == "version 2 answers, within budget"
    assert what_serves(stub) == (2, pytest.approx(1.001))
    assert "m/1/e.plan" in tree(stub), "the version before can be gone back to"


def test_the_ratio_of_p99_is_in_the_log(stub: Stub, reference: Path) -> None:
    stub.delay_ms = lambda model, nth: 3.0 if model == "m" else 1.5
    detail = tried(stub, candidate(reference)).gates[-1].detail
    assert "p99 1.5 ms against 3 ms of version 1: 0.500 times, at most 1.1" in detail
    assert "version 1 against itself 1.000" in detail


def test_wrong_outputs_are_refused_by_the_budget(stub: Stub, reference: Path) -> None:
    said = refusal(stub, candidate(reference, scale=1.05))
    assert re.search(r"triton-outputs: y: relative L2 0\.05\d* is above 0\.02", said)


@pytest.mark.parametrize(("rounding", "passes"), [(2e-4, True), (0.0, False)])
def test_an_fp32_engine_is_allowed_the_rounding_that_its_graph_was(
    stub: Stub, reference: Path, rounding: float, passes: bool
) -> None:
    """An error of 5e-4, where 1e-4 is allowed or 4 times the rounding that was measured."""
    figures = {"cosine": 1.0, "max_abs": 0.0, "relative_l2": 0.0, "rounding": rounding}
    parts = tuple(Part(kind=kind, where="", **figures) for kind in ("sample", "channel"))
    wanted = replace(
        candidate(reference, scale=1.0005),
        budget=Budget(min_cosine=0.99999, max_relative_l2=1e-4, rounding=4),
        measured=(OutputComparison(output="y", parts=parts, **figures),),
    )
    assert (not tried(stub, wanted).refusals) is passes


def test_a_slower_version_is_refused(stub: Stub, reference: Path) -> None:
    stub.delay_ms = lambda model, nth: 1.3 if model == "m.next" else 1.0
    assert "triton-latency: p99 1.3 ms against 1 ms of version 1: 1.300" in refusal(
        stub, candidate(reference)
    )


def test_a_slow_tail_alone_is_refused(stub: Stub, reference: Path) -> None:
    stub.delay_ms = lambda model, nth: 9.0 if model == "m.next" and nth % 40 == 0 else 1.0
    assert "triton-latency: p99 9 ms against 1 ms" in refusal(stub, candidate(reference))


@pytest.mark.parametrize("phase", [0, 3])
def test_where_a_version_differs_from_itself_nothing_is_told(
    stub: Stub, reference: Path, phase: int
) -> None:
    stub.delay_ms = lambda model, nth: 5.0 if model == "m" and nth % 6 == phase else 1.0
    said = refusal(stub, candidate(reference))
    assert "version 1 against itself 5.000" in said
    assert "too high to decide" in said


def test_a_version_that_does_not_load_is_refused_in_tritons_words(
    stub: Stub, reference: Path
) -> None:
    said = refusal(stub, candidate(reference, fails_as=["m.next"]))
    assert "triton-load" in said
    assert "load failed for model 'm.next': version 2: no" in said


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"dims": [4]}, "x FP32[-1, 3] in version 1 is x FP32[-1, 4] now"),
        ({"output": "z"}, "version 1 has y, the new one z"),
    ],
)
def test_other_inputs_or_outputs_are_refused(
    stub: Stub, reference: Path, plan: dict[str, Any], told: str
) -> None:
    assert f"triton-interface: {told}" in refusal(stub, candidate(reference, **plan))


def test_a_reference_of_other_shapes_is_refused_in_tritons_words(
    stub: Stub, tmp_path: Path
) -> None:
    arrays = {f"0000/{kind}/{name}": np.ones((2, 5), np.float32) for kind, name in KINDS}
    np.savez(tmp_path / "other.npz", **arrays)
    said = refusal(stub, candidate(tmp_path / "other.npz"))
    assert "triton-outputs" in said
    assert "unexpected shape for input 'x'" in said


@pytest.mark.parametrize(
    ("plan", "told"),
    [({"fails_as": ["m"]}, "load failed"), ({"scale_as": {"m": 7.0}}, "relative L2 6 is above")],
)
def test_what_fails_once_it_serves_goes_back(
    stub: Stub, reference: Path, plan: dict[str, Any], told: str
) -> None:
    config = (stub.repository / "m/config.pbtxt").read_bytes()
    wanted = candidate(reference, **plan)
    trial = tried(stub, wanted)
    assert not trial.refusals
    with pytest.raises(GateError, match="version 1 serves again") as caught:
        flip(stub, wanted, trial).forward()
    assert told in caught.value.why
    assert what_serves(stub) == (1, 1.0)
    assert (stub.repository / "m/config.pbtxt").read_bytes() == config


def test_an_interruption_goes_back(
    stub: Stub, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = candidate(reference)
    trial = tried(stub, wanted)
    moving = flip(stub, wanted, trial)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("enginefarm.release.triton_trial.replay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        moving.forward()
    assert what_serves(stub) == (1, 1.0)


def test_going_back_that_fails_says_so(stub: Stub, reference: Path) -> None:
    wanted = candidate(reference)
    moving = flip(stub, wanted, tried(stub, wanted))
    moving.forward()
    (stub.repository / "m/1/e.plan").unlink()
    with pytest.raises(TritonError, match="could not go back to version 1"):
        moving.back()


def test_a_config_without_a_version_is_made_to_name_it(stub: Stub, reference: Path) -> None:
    """Or a restart would serve the highest folder, which is the one that was gone back from."""
    path = stub.repository / "m/config.pbtxt"
    path.write_text('name: "m"\nvalue: "e.plan"')
    wanted = candidate(reference, fails_as=["m"])
    trial = tried(stub, wanted)
    with pytest.raises(GateError):
        flip(stub, wanted, trial).forward()
    assert stub.load("m") == (200, {})
    assert what_serves(stub) == (1, 1.0)


def test_a_scalar_a_sample_is_one_value_in_one_dim(stub: Stub, tmp_path: Path) -> None:
    """As config.pbtxt says it (`dims: [ 1 ] reshape { shape: [ ] }`)."""
    for versions in (stub.loaded, {"m": {1: {}}}):
        for plan in versions["m"].values():
            plan["dims"] = [1]
    arrays = {f"0000/{kind}/{name}": np.ones(4, np.float32) for kind, name in KINDS}
    np.savez(tmp_path / "scalars.npz", **arrays)
    scalars = tuple(one.model_copy(update={"shape": (-1,), "dims": ("batch",)}) for one in TENSORS)
    wanted = replace(candidate(tmp_path / "scalars.npz", dims=[1]), tensors=scalars)
    assert not tried(stub, wanted).refusals


def error(stub: Stub, wanted: RolloutCandidate) -> TritonError:
    before = tree(stub)
    with pytest.raises(TritonError) as caught:
        tried(stub, wanted)
    assert tree(stub) == before
    assert caught.value.exit_code == 56
    return caught.value


def test_a_server_in_another_mode_is_said_with_the_flags(stub: Stub, reference: Path) -> None:
    stub.explicit = False
    assert "--model-control-mode=explicit --load-model" in error(stub, candidate(reference)).fix


def test_a_model_that_is_not_served_is_said(stub: Stub, reference: Path) -> None:
    found = error(stub, replace(candidate(reference), model="other"))
    assert "serves no version of other" in found.what
    assert "triton-repo" in found.fix


def test_a_repository_that_the_server_does_not_read_is_said(
    stub: Stub, reference: Path, tmp_path: Path
) -> None:
    settings = RolloutLimits(1.1)
    server = TritonServer(stub.url)
    with pytest.raises(TritonError, match=r"has no m/config\.pbtxt"):
        try_out(server, Folder(tmp_path / "nowhere"), candidate(reference), settings)
    stub.repository = tmp_path / "of-the-server"
    other = Folder(tmp_path / "repo")
    (refused,) = try_out(server, other, candidate(reference), settings).refusals
    assert "failed to poll from model repository" in refused.detail


def test_two_rollouts_at_once_do_not_meet(stub: Stub, reference: Path) -> None:
    stub.loaded["m.next"] = {2: {"scale": 1.0}}
    found = error(stub, candidate(reference))
    assert "another rollout is under way" in found.why
    assert "m.next" in stub.loaded


def test_no_server_and_no_triton(tmp_path: Path, stub: Stub) -> None:
    with pytest.raises(TritonError, match="got no answer") as caught:
        TritonServer("http://127.0.0.1:1").versions("m")
    assert "refused" in caught.value.why
    assert "8000" in caught.value.fix
    with pytest.raises(TritonError, match="404"):
        TritonServer(f"{stub.url}/elsewhere").versions("m")


@pytest.fixture
def answering() -> Iterator[Callable[..., TritonServer]]:
    """Servers that answer everything in one way."""
    with ExitStack() as stack:

        def start(body: bytes, *, status: int = 200, **headers: str) -> TritonServer:
            class Page(BaseHTTPRequestHandler):
                def do_POST(self) -> None:
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.end_headers()
                    self.wfile.write(body)

                do_GET = do_POST

                def log_message(self, *_: Any) -> None:
                    pass

            server = stack.enter_context(HTTPServer(("127.0.0.1", 0), Page))
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return TritonServer(f"127.0.0.1:{server.server_address[1]}")

        yield start


Answering = Callable[..., TritonServer]
PACKED = gzip.compress(b"[" + b" " * 10_000_000 + b"]")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<html>hello</html>", {}),
        (b"[" * 100_000, {}),
        (PACKED, {"Content_Encoding": "gzip"}),
        (b"\xff\xfe", {}),
        (b"[9" + b"9" * 5000 + b"]", {}),
    ],
    ids=["page", "nested", "packed", "no text", "long number"],
)
def test_a_server_that_is_something_else_is_said(
    answering: Answering, body: bytes, headers: dict[str, str]
) -> None:
    with pytest.raises(TritonError, match="something other than Triton"):
        answering(body, **headers).versions("m")


@pytest.mark.parametrize(
    "said",
    [
        7,
        {"a": 1},
        ["m"],
        [None],
        [{"name": "m", "version": "1"}, 5],
        {"inputs": None},
        {"inputs": [5]},
        {"inputs": [{"name": "x"}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": 3}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1e999]}]},
        {"outputs": "abc"},
    ],
    ids=str,
)
def test_json_that_is_not_the_protocols_is_one_error(answering: Answering, said: Any) -> None:
    server = answering(json.dumps(said).encode())
    for ask in (lambda: server.versions("m"), lambda: server.model("m", 1)):
        with suppress(TritonError):
            ask()
    with pytest.raises(TritonError, match="its answer cannot be read"):
        server.infer("m", {"x": np.zeros((1, 2), np.float32)})


@pytest.mark.parametrize(
    "output",
    [
        {"name": "y", "shape": [2], "datatype": "FP32", "data": [1]},
        {"name": "y", "shape": [2], "datatype": "FP32", "data": ["a", "b"]},
        {"name": "y", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 4}},
        {"name": "y", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 1e999}},
        {"name": "y", "shape": [1 << 40], "datatype": "FP32", "data": [1]},
        {"name": "y", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 7}},
        {"name": "y", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": -1}},
    ],
    ids=str,
)
def test_outputs_that_are_not_what_they_say(answering: Answering, output: Any) -> None:
    body = json.dumps({"model_version": "1", "outputs": [output]}).encode()
    server = answering(body + bytes(3), Inference_Header_Content_Length=str(len(body)))
    with pytest.raises(TritonError, match="its answer cannot be read"):
        server.infer("m", {"x": np.zeros((1, 2), np.float32)})


def test_an_answer_without_end_is_cut(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_server, "LIMIT_BYTES", 1000)
    with pytest.raises(TritonError, match="the answer is longer than 1000 bytes"):
        answering(b"[" + b" " * 100_000).versions("m")
    assert answering(b"[]").versions("m") == ()


def test_an_answer_that_leads_elsewhere_is_not_followed(answering: Answering) -> None:
    with pytest.raises(TritonError, match=r"was refused \(302\)"):
        answering(b"", status=302, Location="http://127.0.0.1:1/").versions("m")


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "http://", "http://host:port", "host:99999", "http://[::1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(TritonError, match="not the address of a server"):
        TritonServer(url)
