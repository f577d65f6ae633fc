"""`enginefarm rollout` on a real store. The Triton here is `triton_stub`, a small server that
speaks the protocol; test_real_triton.py has the real one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_manifest import make_manifest, ref
from triton_stub import Stub, serving

from enginefarm import cli
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import CorruptBlob, StoreConflict
from enginefarm.pulling.triton_places import place
from enginefarm.release import promote as release
from enginefarm.store import channels
from enginefarm.store.engine_store import EngineStore

Out = pytest.CaptureFixture[str]
Publish = Callable[..., Manifest]


@pytest.fixture
def publish(store_environment: EngineStore) -> Publish:
    """Puts an engine into the store whose bytes tell the stub what to answer."""
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    packed = io.BytesIO()
    np.savez(packed, **{"0000/input/x": x, "0000/output/y": x})
    reference = store_environment.put_bytes(packed.getvalue())

    def put(salt: str, **plan: Any) -> Manifest:
        engine = json.dumps({"scale": 1.0, **plan, "salt": salt}).encode()
        made = make_manifest(engine=engine, salt=salt, on_device="passed", minutes=int(salt))
        x_in, y = made.tensors
        made = made.model_copy(
            update={
                "reference": reference,
                "tensors": (x_in, y.model_copy(update={"shape": (-1, 3)})),
            }
        )
        store_environment.put_bytes(engine)
        store_environment.put_bytes(b"graph")
        assert store_environment.publish(made)
        return made

    return put


@pytest.fixture
def stub(publish: Publish, store_environment: EngineStore, tmp_path: Path) -> Iterator[Stub]:
    """Serves what triton-repo wrote of the first engine, which is in production."""
    publish("1")
    release.promote(store_environment, "model", "production")
    assert cli.run(["triton-repo", "model@production", str(tmp_path / "repo")]) == 0
    with serving(tmp_path / "repo") as found:
        assert found.load("model") == (200, {})
        yield found


def rollout(stub: Stub, *more: str) -> int:
    server = ["--server", stub.url, "--requests", "100", "--max-p99-ratio", "100"]
    return cli.run(["rollout", "model", str(stub.repository), *server, *more])


def test_the_new_engine_serves_and_the_channel_moves(
    stub: Stub, publish: Publish, store_environment: EngineStore, capsys: Out
) -> None:
    newer = publish("2")
    assert rollout(stub, "--why", "weights of Friday") == 0
    assert "model@production is revision 2" in capsys.readouterr().out
    assert set(stub.loaded) == {"model"}
    assert {version: plan["salt"] for version, plan in stub.loaded["model"].items()} == {2: "2"}
    now = channels.current(store_environment, "model", "production")
    assert now is not None
    assert [one.spec_digest for one in now.engines] == [newer.spec_digest]
    assert now.why == "weights of Friday"
    told = {one.gate: one for one in now.gates if one.gate.startswith("triton-")}
    assert set(told) == {
        *("triton-load", "triton-interface", "triton-outputs", "triton-latency", "triton-serving")
    }
    assert "4 samples of the reference are within budget" in told["triton-outputs"].detail
    assert told["triton-latency"].label.startswith("model on 127.0.0.1:")
    publish("3")
    assert rollout(stub) == 0
    assert set(stub.loaded["model"]) == {3}


def test_a_refusal_is_in_the_channels_log_and_moves_nothing(
    stub: Stub, publish: Publish, store_environment: EngineStore, capsys: Out
) -> None:
    before = channels.current(store_environment, "model", "production")
    assert before is not None
    publish("2", scale=1.5)
    assert rollout(stub, "--why", "try it") == 55
    said = capsys.readouterr().err
    assert "refused version 2 of model" in said
    assert "relative L2 0.5 is above 0.02" in said
    assert "version 1 still serves; revision 2 of model@production has the outcome" in said
    assert set(stub.loaded["model"]) == {1}
    now = channels.current(store_environment, "model", "production")
    assert now is not None
    assert (now.revision, now.engines, now.action) == (2, before.engines, "rollback")
    assert now.source.startswith("rollout of newest on 127.0.0.1:")
    assert now.why.startswith("try it: triton-outputs: y: relative L2")
    assert [one.gate for one in now.gates if one.verdict == "refused"] == ["triton-outputs"]


def test_a_channel_that_somebody_else_moved_takes_triton_back(
    stub: Stub, publish: Publish, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    publish("2")

    def moved(*_: object) -> None:
        raise StoreConflict("somebody else moved it first")

    monkeypatch.setattr(release, "_move", moved)
    assert rollout(stub) == 45
    assert set(stub.loaded["model"]) == {1}
    assert "versions: [ 1 ]" in (stub.repository / "model/config.pbtxt").read_text()


def test_nothing_is_loaded_that_would_not_be_promoted(
    stub: Stub, publish: Publish, capsys: Out
) -> None:
    publish("2", fails_as=["model.next"])
    assert rollout(stub, "--to", "canary") == 55
    assert "model@canary has no log yet" in capsys.readouterr().err
    stub.answered.clear()
    assert rollout(stub, "--gpu", "l4") == 43
    assert rollout(stub, "--as", "other") == 56
    assert "serves no version of other" in capsys.readouterr().err
    assert stub.answered == []


def test_a_repository_in_a_bucket(store_environment: EngineStore, tmp_path: Path) -> None:
    where = place(f"{store_environment.url}-triton")
    (tmp_path / "plan").write_bytes(b"plan")
    assert where.read("m/config.pbtxt") is None
    where.copy(tmp_path / "plan", "m.next/2/e.plan", ref(b"plan"))
    with pytest.raises(CorruptBlob):
        where.copy(tmp_path / "plan", "m.next/3/e.plan", ref(b"nalp"))
    assert where.read("m.next/3/e.plan") is None
    where.write("m.next/config.pbtxt", b"next")
    where.write("m/config.pbtxt", b"config")
    where.remove("m.next")
    assert where.read("m.next/2/e.plan") is None
    assert where.read("m.next/config.pbtxt") is None
    assert where.read("m/config.pbtxt") == b"config"
    where.remove("m.next")
