"""Who can only write to the store gets nothing signed, and nothing past a host that checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sample_manifest import make_manifest, ref

import enginefarm
from enginefarm import cli
from enginefarm.building import engine as engines
from enginefarm.building.engine import BuildResult, Job
from enginefarm.documents.manifest import DeviceVerification, Manifest
from enginefarm.documents.signed import Signature
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import (
    EnginefarmError,
    GateError,
    NoEngineFits,
    PlanDamaged,
    SignatureRejected,
    StoreConflict,
)
from enginefarm.release import promote as release
from enginefarm.store import (
    budgets,
    channels,
    layout,
    quarantine,
    reverification,
    signing,
    statements,
)
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site, whole
from tests.fake_builds import made

pytestmark = pytest.mark.usefixtures("no_gpu_here")

EVIL = b"plan of an attacker"
UNVERIFIED = "not yet verified on a GPU: no trusted key signed that it passed on its GPU"


@pytest.fixture
def signing_farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process signs, and trusts its own key."""
    public, _ = signing.generate(tmp_path / "farm.pem")
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(tmp_path / "farm.pem"))
    monkeypatch.setenv("ENGINEFARM_TRUST", str(public))


@pytest.fixture
def unsigned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], object]:
    """Runs something as who can write to the store and has no signing key."""

    def run(action: Callable[[], object]) -> object:
        with monkeypatch.context() as patch:
            patch.delenv("ENGINEFARM_SIGNING_KEY")
            patch.delenv("ENGINEFARM_TRUST")
            return action()

    return run


def pulled(name: str = "model", cache: BlobCache | None = None) -> bytes:
    return enginefarm.pull(name, gpu="t4", cache=cache).path.read_bytes()


def forge_record(site: Site, job: Job) -> None:
    """A stage record that gives an attacker's bytes out as the plan."""
    key, stage = job.spec.plan_key, f"plan-{job.spec.precision.name}"
    record = site.store.stage(stage, key)
    assert record is not None
    outputs = {**record.outputs, "plan": site.store.put_bytes(EVIL)}
    site.store.put_stage(record.model_copy(update={"outputs": outputs}))


@pytest.mark.usefixtures("signing_farm")
def test_a_forged_record_of_a_plan_is_built_again_and_never_signed(
    site: Site, job: Job, builds: list[bytes]
) -> None:
    made(site, job)
    forge_record(site, job)
    site.store.objects.delete(layout.manifest(job.spec.digest))
    assert made(site, job).engine == ref(b"plan 1")
    assert pulled() == b"plan 1"


@pytest.mark.usefixtures("signing_farm")
def test_a_record_that_another_trusted_builder_signed_is_believed(
    site: Site, job: Job, builds: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.build(site, job)
    first = tmp_path / "farm.pub.pem"
    other, _ = signing.generate(tmp_path / "other.pem")
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(tmp_path / "other.pem"))
    monkeypatch.setenv("ENGINEFARM_TRUST", f"{first}:{other}")
    assert made(site, job).engine == ref(b"plan 0")
    assert builds == [b"plan 0"]
    monkeypatch.setenv("ENGINEFARM_TRUST", str(other))
    site.store.objects.delete(layout.manifest(job.spec.digest))
    assert made(site, job).engine == ref(b"plan 1"), "it does not trust that builder any more"


@pytest.mark.usefixtures("signing_farm")
@pytest.mark.parametrize("change", ["plan", "key", "tensors"])
def test_what_this_process_did_not_build_it_does_not_sign(
    site: Site, job: Job, builds: list[bytes], change: str
) -> None:
    built = engines.build(site, job)
    assert isinstance(built, BuildResult)
    forged = {
        "plan": {"plan": site.store.put_bytes(EVIL)},
        "key": {"plan_key": "0" * 64},
        "tensors": {"tensors": ()},
    }[change]
    with pytest.raises(SignatureRejected, match="is not signed"):
        engines.publish(site, job, built.model_copy(update=forged))
    assert site.store.manifest(job.spec.digest) is None


@pytest.mark.usefixtures("signing_farm")
def test_a_published_manifest_that_nobody_signed_does_not_keep_the_engine_from_being_built(
    site: Site, job: Job, builds: list[bytes], unsigned: Callable[..., object]
) -> None:
    evil = make_manifest(engine=EVIL)
    site.store.put_bytes(EVIL)
    unsigned(lambda: site.store.publish(evil))
    with pytest.raises(SignatureRejected):
        pulled()
    made(site, job)
    assert pulled() == b"plan 0"


def test_the_header_of_a_portable_plan_is_compared_with_the_spec(
    site: Site, job: Job, builds: list[bytes]
) -> None:
    spec = make_manifest(toolchain="tensorrt-rtx", build="1.7.1.116").spec
    with pytest.raises(PlanDamaged):
        made(site, job.model_copy(update={"spec": spec}))
    assert site.store.manifest(spec.digest) is None


@pytest.mark.usefixtures("signing_farm")
def test_an_engine_under_another_recipes_name_is_refused_until_a_builder_signs_the_name(
    site: Site, job: Job, builds: list[bytes]
) -> None:
    made(site, job)
    (manifest,) = site.store.manifests("model")
    site.store.objects.put(layout.index(layout.entry_of(manifest, "twin")), b"")
    with pytest.raises(SignatureRejected, match="under the name twin"):
        pulled("twin")
    other = statements.alias_of("other", manifest)
    key = statements.alias_key("twin", manifest.spec_digest)
    vouches = statements.signing_policy()
    assert vouches is not None
    site.store.objects.put(key, vouches.sign(other).canonical_json())
    with pytest.raises(SignatureRejected, match="another engine or name"):
        pulled("twin")
    site.store.objects.put(key, statements.alias_of("twin", manifest).canonical_json())
    with pytest.raises(SignatureRejected, match="under the name twin"):
        pulled("twin")
    assert not statements.is_named(site.store, "third", manifest)
    made(site, job.model_copy(update={"recipe": "twin"}))
    assert statements.is_named(site.store, "twin", manifest)
    assert pulled("twin") == b"plan 0"
    assert enginefarm.pull("twin", gpu="t4", offline=True).path.read_bytes() == b"plan 0"


@pytest.mark.usefixtures("signing_farm")
def test_a_signed_engine_of_another_recipe_is_not_promoted_under_this_name(
    site: Site, job: Job, builds: list[bytes]
) -> None:
    manifest = made(site, job)
    site.store.objects.put(layout.index(layout.entry_of(manifest, "twin")), b"")
    assert cli.run(["promote", "twin", "--allow-pending"]) == 55


def promote(site: Site) -> channels.Revision:
    return release.promote(
        site.store, "model", "production", allow_pending=True, trust=signing.trust()
    )


@pytest.mark.usefixtures("signing_farm")
def test_a_forged_revision_is_refused_and_the_next_signed_one_is_taken(
    site: Site, job: Job, builds: list[bytes], unsigned: Callable[..., object]
) -> None:
    made(site, job)
    promote(site)
    assert pulled("model@production") == b"plan 0"
    unsigned(lambda: promote(site))
    with pytest.raises(SignatureRejected, match=r"revision 2 of the channel model@production"):
        pulled("model@production")
    promote(site)
    assert pulled("model@production") == b"plan 0"
    with pytest.raises(SignatureRejected, match="revision 2"):
        release.rollback(site.store, "model", "production", to=2, trust=signing.trust())


@pytest.mark.usefixtures("signing_farm")
@pytest.mark.parametrize("field", ["channel", "revision", "why", "engines"])
def test_a_signed_revision_is_of_one_channel_number_and_set_of_engines(
    site: Site, job: Job, builds: list[bytes], field: str
) -> None:
    made(site, job)
    now = promote(site)
    changed = {"channel": "candidate", "revision": 7, "why": "because", "engines": ()}[field]
    forged = now.model_copy(update={field: changed})
    site.store.objects.put(forged.key, forged.canonical_json())
    with pytest.raises(SignatureRejected):
        pulled(f"model@{forged.channel}")


@pytest.mark.usefixtures("signing_farm")
def test_a_host_notices_that_newer_revisions_were_deleted(
    site: Site, job: Job, builds: list[bytes], tmp_path: Path
) -> None:
    made(site, job)
    promote(site)
    newest = promote(site)
    host, fresh = BlobCache(tmp_path / "host"), BlobCache(tmp_path / "fresh")
    pulled("model@production", host)
    site.store.objects.delete(newest.key)
    with pytest.raises(SignatureRejected, match="has gone back to revision 1"):
        pulled("model@production", host)
    assert pulled("model@production", fresh), "who has not seen the newer one cannot know"


def passed_on_gpu(site: Site, manifest: Manifest, folder: Path) -> Manifest:
    """What a worker on a T4 writes about an engine that is right there."""
    (folder / "log").write_text("")
    passed = DeviceVerification(status="passed", gpu="Tesla T4")
    return quarantine.record(site.store, manifest, passed, folder / "log")


@pytest.mark.usefixtures("signing_farm")
def test_what_a_gpu_says_counts_if_a_trusted_key_signed_it(
    site: Site, job: Job, builds: list[bytes], tmp_path: Path
) -> None:
    passed_on_gpu(site, made(site, job), tmp_path)
    found = enginefarm.pull("model", gpu="t4")
    assert found.manifest.device_verification.status == "passed"
    assert UNVERIFIED not in found.candidate.caveats
    trusted = signing.trust()
    moved = release.promote(site.store, "model", "production", trust=trusted, why="it is right")
    gates = {gate.gate: gate for gate in moved.gates}
    assert (gates["device"].verdict, gates["device"].detail) == ("passed", "verified on Tesla T4")


@pytest.mark.usefixtures("signing_farm")
@pytest.mark.parametrize("forgery", ["nobody signed it", "of another engine", "of a failure"])
def test_a_forged_result_of_a_gpu_is_neither_believed_nor_promoted(
    site: Site,
    job: Job,
    builds: list[bytes],
    unsigned: Callable[[Callable[[], object]], object],
    forgery: str,
) -> None:
    manifest = made(site, job)
    passed = DeviceVerification(status="passed", gpu="Tesla T4")

    def signatures() -> tuple[Signature, ...]:
        if forgery == "nobody signed it":
            return ()
        key = signing.signer()
        assert key is not None
        change = {
            "of another engine": {"device_verification": passed, "notes": ("another engine",)},
            "of a failure": {"device_verification": DeviceVerification(status="failed")},
        }
        other = manifest.model_copy(update=change[forgery])
        return statements.sign_device_result(other, key).device_verification.signatures

    forged = passed.model_copy(update={"signatures": signatures()})
    body = manifest.model_copy(update={"device_verification": forged}).canonical_json()
    unsigned(lambda: site.store.objects.put(layout.manifest(manifest.spec_digest), body))
    found = enginefarm.pull("model", gpu="t4")
    assert found.manifest.device_verification.status == "pending"
    assert UNVERIFIED in found.candidate.caveats
    with pytest.raises(GateError, match="worker that has the signing key"):
        release.promote(site.store, "model", "production", trust=signing.trust())
    assert cli.run(["sign", "model"]) == 0
    assert enginefarm.pull("model", gpu="t4").manifest.device_verification.status == "pending"
    assert cli.run(["sign", "model", "--vouch"]) == 0
    assert enginefarm.pull("model", gpu="t4").manifest.device_verification.status == "passed"


@pytest.mark.usefixtures("signing_farm")
def test_a_gpus_result_counts_for_the_engine_that_ran_alone(
    site: Site, job: Job, builds: list[bytes], tmp_path: Path
) -> None:
    """Two signed engines can have the same spec. One that failed must not get the result of the
    other by being put in its place while that one runs."""
    ran = made(site, job)
    key = signing.signer()
    assert key is not None
    other = ran.model_copy(update={"engine": site.store.put_bytes(b"a wrong plan")})
    wrong = Manifest.read(other.canonical_json())
    site.store.objects.put(signing.attestation_key(wrong), key.attest(wrong).canonical_json())
    site.store.objects.put(layout.manifest(ran.spec_digest), wrong.canonical_json())
    with pytest.raises(StoreConflict, match="was replaced while its engine ran"):
        passed_on_gpu(site, ran, tmp_path)
    assert enginefarm.pull("model", gpu="t4").manifest.device_verification.status == "pending"
    site.store.objects.put(layout.manifest(ran.spec_digest), ran.canonical_json())
    assert passed_on_gpu(site, ran, tmp_path).device_verification.signatures


@pytest.mark.usefixtures("signing_farm")
def test_what_somebody_who_writes_the_store_can_still_do(
    site: Site, job: Job, builds: list[bytes], tmp_path: Path
) -> None:
    """docs/security.md says so: withhold a newer revision, delete an engine and a GPU's result,
    withdraw an engine, or loosen a budget that new figures missed."""
    manifest = made(site, job)
    missed = manifest.verification.model_copy(
        update={"over_budget": ("y: cosine",), "asked": "b" * 64}
    )
    assert manifest.reference is not None
    written = reverification.write(
        site.store, "model", job.spec.digest, manifest.graph, missed, manifest.reference
    )
    with pytest.raises(NoEngineFits, match="over the accuracy budget"):
        pulled()
    loose = budgets.Budgets(of={manifest.precision: Budget()})
    site.store.objects.put("budgets/model.json", loose.canonical_json())
    assert pulled() == b"plan 0"
    assert written is not None
    manifest = written
    passed_on_gpu(site, manifest, tmp_path)
    site.store.objects.put(layout.manifest(manifest.spec_digest), manifest.canonical_json())
    found = enginefarm.pull("model", gpu="t4", cache=BlobCache(tmp_path / "one"))
    assert found.manifest.device_verification.status == "pending"
    promote(site)
    site.store.objects.delete(promote(site).key)
    assert pulled("model@production", BlobCache(tmp_path / "two")) == b"plan 0"
    failed = manifest.model_copy(
        update={"device_verification": DeviceVerification(status="failed", reason="a lie")}
    )
    site.store.objects.put(layout.manifest(manifest.spec_digest), failed.canonical_json())
    with pytest.raises(NoEngineFits, match="a lie"):
        pulled("model", BlobCache(tmp_path / "three"))
    site.store.objects.delete(layout.manifest(manifest.spec_digest))
    with pytest.raises(EnginefarmError):
        pulled("model", BlobCache(tmp_path / "four"))


@pytest.mark.usefixtures("signing_farm")
def test_sign_signs_what_a_trusted_builder_recorded_and_the_rest_only_on_request(
    site: Site, job: Job, builds: list[bytes], unsigned: Callable[..., object]
) -> None:
    manifest = made(site, job)
    for info in list(site.store.objects.list("attestations/")):
        site.store.objects.delete(info.key)
    assert cli.run(["sign", "model"]) == 0
    assert pulled() == b"plan 0"
    site.store.put_bytes(EVIL)
    evil = make_manifest(engine=EVIL, salt="evil")
    unsigned(lambda: site.store.publish(evil))
    assert cli.run(["sign", "model"]) == SignatureRejected.exit_code
    assert cli.run(["sign", "model", "--vouch"]) == 0
    assert cli.run(["verify", "model"]) == 0
    assert whole(site, "model", manifest.spec_digest) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ["promote", "model", "--to", "PROD"],
        ["promote", "model", "--to", "a/b"],
        ["promote", "model", "--to", ""],
        ["promote", "M", "--to", "production"],
        ["promote", "model", "--from", "PROD\n"],
        ["rollback", "model", "PROD"],
        ["channel", "model", "../x"],
        ["pull", "model@PROD", "--gpu", "t4"],
        ["pull", "Model", "--gpu", "t4"],
    ],
)
def test_a_name_that_cannot_be_one_is_the_users_mistake(
    site: Site, job: Job, builds: list[bytes], arguments: list[str]
) -> None:
    made(site, job)
    assert cli.run(arguments) in (2, 43)


def read(store: EngineStore) -> list[Manifest]:
    return list(store.manifests("model"))


def test_fields_of_a_later_version_keep_a_signature_whole(
    site: Site, job: Job, builds: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, _ = signing.generate(tmp_path / "farm.pem")
    signer = signing.signer({"ENGINEFARM_SIGNING_KEY": str(tmp_path / "farm.pem")})
    assert signer is not None
    manifest = made(site, job)
    body = manifest.canonical_json().replace(b'"recipe":', b'"later":{"a":[1]},"recipe":', 1)
    site.store.objects.put(layout.manifest(manifest.spec_digest), body)
    (later,) = read(site.store)
    assert later.model_extra == {"later": {"a": [1]}}
    site.store.objects.put(signing.attestation_key(later), signer.attest(later).canonical_json())
    monkeypatch.setenv("ENGINEFARM_TRUST", str(public))
    assert pulled() == b"plan 0"
    site.store.objects.put(
        layout.manifest(manifest.spec_digest), body.replace(b'"a":[1]', b'"a":[2]')
    )
    with pytest.raises(EnginefarmError):
        pulled()


def test_one_manifest_of_a_newer_version_or_damaged_hides_no_other(
    site: Site, job: Job, builds: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    made(site, job)
    for digest, body in (("1" * 64, b'{"schema_version": 9}'), ("2" * 64, b"no JSON")):
        site.store.objects.put(layout.manifest(digest), body)
        entry = layout.IndexEntry("model", "t4", "fp16", digest)
        site.store.objects.put(layout.index(entry), b"")
    assert pulled() == b"plan 0"
    assert "of a newer enginefarm" in caplog.text
    assert cli.run(["promote", "model", "--allow-pending"]) == 0
    assert cli.run(["gc"]) == 0
