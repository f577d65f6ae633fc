"""A pull that finds nothing new is answered by the note of the last one, and by no other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enginefarm import cli
from enginefarm.documents.manifest import DeviceVerification, Manifest
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import NoEngineFits, SignatureRejected
from enginefarm.pulling import pull as whole
from enginefarm.release.promote import promote
from enginefarm.store import layout, signing
from enginefarm.store.budgets import Budgets
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore

Publish = Callable[..., Manifest]


class Pulls:
    """Runs `enginefarm pull`, and counts those that the whole pull answered."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capfd = capfd
        self.whole = 0
        pull = whole.pull

        def counted(*given: object, **named: object) -> object:
            self.whole += 1
            return pull(*given, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(whole, "pull", counted)

    def __call__(self, *more: str, name: str = "model", code: int = 0) -> tuple[str, str]:
        self._capfd.readouterr()
        assert cli.run(["pull", name, "--gpu", "t4", *more]) == code, self._capfd.readouterr().err
        out, err = self._capfd.readouterr()
        return out, err


@pytest.fixture
def pull(
    publish: Publish,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Pulls:
    """After two pulls of one engine, so that its answer is noted."""
    monkeypatch.setenv("HOME", str(tmp_path))  # without ~/.aws
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    publish(b"first engine")
    pulls = Pulls(capfd, monkeypatch)
    pulls()
    pulls()
    assert pulls.whole == 1, "the second pull was answered by the note"
    return pulls


def test_it_says_what_the_whole_pull_says(pull: Pulls) -> None:
    noted = pull()
    assert pull.whole == 1
    for note in (BlobCache().root / "pulls").iterdir():
        note.unlink()
    assert pull() == noted
    assert pull.whole == 2


def test_it_loads_no_models(pull: Pulls) -> None:
    script = (
        "import sys; from enginefarm.cli import run; assert run(sys.argv[1:]) == 0;"
        "sys.exit('pydantic' in sys.modules)"
    )
    command = [sys.executable, "-c", script, "pull", "model", "--gpu", "t4"]
    for more in ([], ["--dest", str(BlobCache().root / "model.plan")]):
        subprocess.run([*command, *more], check=True, timeout=120)


def test_a_copy_has_its_manifest_beside_it(pull: Pulls, tmp_path: Path) -> None:
    pull("--dest", str(tmp_path / "model.plan"))
    assert pull.whole == 1
    assert (tmp_path / "model.plan").read_bytes() == b"first engine"
    manifest = Manifest.read((tmp_path / "model.plan.json").read_bytes())
    assert manifest.engine.digest in manifest.canonical_json().decode()


def test_a_newer_engine_is_found(pull: Pulls, publish: Publish) -> None:
    newer = publish(b"second engine", precision="fp16", salt="2", minutes=1)
    out, err = pull()
    assert Path(out.strip()).read_bytes() == b"second engine"
    assert newer.engine.digest[:12] in err


def test_a_channel_that_moved_is_followed(
    pull: Pulls, publish: Publish, store_environment: EngineStore
) -> None:
    def promoted() -> bytes:
        out, _ = pull(name="model@production")
        return Path(out.strip()).read_bytes()

    promote(store_environment, "model", "production", allow_pending=True)
    assert [promoted(), promoted()] == [b"first engine"] * 2
    assert pull.whole == 2, "the second was answered by the note"
    publish(b"second engine", salt="2", minutes=1)
    assert promoted() == b"first engine"
    promote(store_environment, "model", "production", allow_pending=True)
    assert promoted() == b"second engine"


def test_an_engine_that_failed_since_is_not_answered(
    pull: Pulls, store_environment: EngineStore
) -> None:
    (spec,) = store_environment.complete("model")
    failed = DeviceVerification(status="failed", reason="wrong numbers")
    store_environment.rewrite(
        spec, lambda one: one.model_copy(update={"device_verification": failed})
    )
    _, err = pull(code=NoEngineFits.exit_code)
    assert "wrong numbers" in err


def test_a_changed_budget_counts_at_once(pull: Pulls, store_environment: EngineStore) -> None:
    budgets = Budgets(of={"fp16": Budget(min_top1_agreement=0.9)})
    store_environment.objects.put("budgets/model.json", budgets.canonical_json())
    assert "the accuracy budget needs" in pull()[1]


def test_what_is_left_out_is_said_each_time(
    pull: Pulls, publish: Publish, store_environment: EngineStore, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = publish(b"another engine", precision="int8")
    store_environment.objects.put(layout.manifest(damaged.spec_digest), b"{")
    for _ in range(2):
        caplog.clear()
        pull()
        assert damaged.spec_digest[:12] in caplog.text


def test_a_withdrawn_engine_is_not_answered(pull: Pulls, store_environment: EngineStore) -> None:
    (entry,) = store_environment.index("model")
    store_environment.objects.delete(layout.index(entry))
    assert cli.run(["pull", "model", "--gpu", "t4"]) != 0


def test_a_damaged_engine_is_downloaded_again(pull: Pulls) -> None:
    path = Path(pull()[0].strip()).resolve()
    path.chmod(0o644)
    path.write_bytes(b"wrong engine")
    assert "downloaded" in pull()[1]
    assert path.read_bytes() == b"first engine"


def test_another_host_is_another_question(pull: Pulls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEFARM_TENSORRT", "9.0.0")
    _, err = pull(code=NoEngineFits.exit_code)
    assert "the host has 9.0.0" in err


def test_another_version_of_enginefarm_answers_for_itself(
    pull: Pulls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginefarm.__version__", "0.0.0")
    pull()
    assert pull.whole == 2


def test_a_host_with_trust_keys_checks_each_time(
    pull: Pulls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, _ = signing.generate(tmp_path / "key.pem")
    monkeypatch.setenv("ENGINEFARM_TRUST", str(public))
    pull(code=SignatureRejected.exit_code)


@pytest.mark.parametrize("damage", ["others can write it", "no JSON", "another engine"])
def test_a_note_that_cannot_be_believed_is_not_used(pull: Pulls, damage: str) -> None:
    (note,) = (BlobCache().root / "pulls").iterdir()
    if damage == "others can write it":
        note.chmod(0o666)
    elif damage == "no JSON":
        note.write_bytes(b"{")
    else:
        said = json.loads(note.read_bytes())
        note.write_text(json.dumps(said | {"engine": ["f" * 64, 12]}))
    out, _ = pull()
    assert pull.whole == 2
    assert Path(out.strip()).read_bytes() == b"first engine"
