"""Channels on a real S3 server: gates, one atomic move, races, rollback, the log."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from sample_manifest import make_manifest
from tiny_onnx import convolutions

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import CorruptBlob, GateError, StoreConflict, StoreMissing, UsageError
from enginefarm.farm import night as nightly
from enginefarm.planning.survey import local_offers
from enginefarm.release import promote as release
from enginefarm.report.nightly import page
from enginefarm.store import budgets, channels, layout, reverification, signing, statements
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site
from enginefarm.tables.rows import BenchmarkRow
from enginefarm.tables.tables import BenchmarkTables

Publish = Callable[..., Manifest]


@pytest.fixture
def publish(store: EngineStore) -> Publish:
    def put(**changes: object) -> Manifest:
        made = {"on_device": "passed", **changes}
        manifest = make_manifest(**made)  # type: ignore[arg-type]
        engine = made.get("engine", b"engine")
        assert isinstance(engine, bytes)
        graph = made.get("graph", b"graph")
        assert isinstance(graph, bytes)
        store.put_bytes(engine)
        store.put_bytes(graph)
        signer = signing.signer()
        manifest = manifest if signer is None else statements.sign_device_result(manifest, signer)
        store.publish(manifest, signer)
        return manifest

    return put


def promote(store: EngineStore, channel: str = "production", **options: object) -> object:
    return release.promote(store, "model", channel, **options)  # type: ignore[arg-type]


def specs(store: EngineStore, channel: str = "production") -> set[str]:
    now = channels.current(store, "model", channel)
    return {one.spec_digest for one in now.engines} if now else set()


def refusal(store: EngineStore, **options: object) -> str:
    before = channels.current(store, "model", "production")
    with pytest.raises(GateError) as caught:
        promote(store, **options)
    assert channels.current(store, "model", "production") == before
    return caught.value.why


def test_promote_moves_every_gpu_at_once_and_the_log_says_who_and_why(
    store: EngineStore, publish: Publish
) -> None:
    made = {publish(label=label).spec_digest for label in ("t4", "a100", "l4")}
    promote(store, by="ana", why="first release")
    assert specs(store) == made
    (entry,) = channels.history(store, "model", "production")
    assert (entry.by, entry.why, entry.revision) == ("ana", "first release", 1)
    assert {one.gate for one in entry.gates} >= {"device", "accuracy", "signature", "regression"}


def test_the_newest_graph_s_newest_engines_are_promoted(
    store: EngineStore, publish: Publish
) -> None:
    publish(graph=b"v1", label="t4")
    publish(graph=b"v2", label="t4", minutes=1)
    newest = publish(graph=b"v2", label="t4", salt="rebuilt", minutes=2)
    promote(store)
    assert specs(store) == {newest.spec_digest}


def test_production_is_promoted_from_candidate(store: EngineStore, publish: Publish) -> None:
    first = publish(graph=b"v1")
    promote(store, "candidate")
    publish(graph=b"v2", minutes=5)
    promote(store, source="candidate")
    assert specs(store) == {first.spec_digest}
    with pytest.raises(StoreMissing, match="model@nowhere"):
        promote(store, source="nowhere")


def test_an_unverified_engine_needs_to_be_allowed(store: EngineStore, publish: Publish) -> None:
    publish(on_device="pending")
    assert "not yet run on the GPU" in refusal(store)
    moved = release.promote(store, "model", "production", allow_pending=True)
    (device,) = [one for one in moved.gates if one.gate == "device"]
    assert device.verdict == "waived"


def test_every_refusal_is_said_at_once(store: EngineStore, publish: Publish) -> None:
    publish(on_device="failed", over_budget=("cosine 0.5 < 0.99",))
    said = refusal(store, allow_pending=True)
    assert "accuracy: cosine 0.5 < 0.99" in said
    assert "device: failed on the GPU" in said


def test_missing_bytes_are_refused(store: EngineStore, publish: Publish) -> None:
    manifest = publish()
    store.objects.delete(layout.blob(manifest.engine))
    assert "bytes are not in the store" in refusal(store)


def test_a_gpu_that_would_be_lost_is_refused(store: EngineStore, publish: Publish) -> None:
    publish(label="t4")
    publish(label="l4")
    promote(store)
    publish(label="t4", graph=b"v2", minutes=1)
    assert "would lose l4/fp16" in refusal(store)
    promote(store, allow_missing=True)
    assert len(specs(store)) == 1


def row(manifest: Manifest, night: date, milliseconds: float) -> BenchmarkRow:
    toolchain = manifest.spec.toolchain
    return BenchmarkRow(
        date=night,
        measured_at=datetime.now(UTC),
        writer="worker",
        recipe=manifest.recipe,
        outcome="measured",
        runtime="tensorrt",
        precision=manifest.precision,
        gpu=manifest.gpu,
        spec_digest=manifest.spec_digest,
        engine_digest=manifest.engine.digest,
        toolchain=toolchain.name,
        toolchain_build=toolchain.build,
        latency_ms_median=milliseconds,
        cov_verdict="stable",
    )


def test_a_slower_engine_is_refused(store: EngineStore, publish: Publish) -> None:
    old = publish(engine=b"old")
    promote(store)
    new = publish(engine=b"new", graph=b"v2", minutes=1)
    nights = [date(2026, 11, 1) + timedelta(days=day) for day in range(7)]
    BenchmarkTables(store.objects).append(
        [row(old, night, 5 + 0.01 * index) for index, night in enumerate(nights)]
        + [row(new, nights[-1] + timedelta(days=1), 7.0)]
    )
    assert "regression" in refusal(store)


RECIPE = """
name: model
source: {kind: onnx, path: model.onnx}
inputs: [{name: x, dtype: float16, shape: [1, 3, 16, 16]}]
gpus: [t4]
verification: {data: {path: data.npz}}
regression: {latency_ratio: RATIO, spreads: 1, nights: 7}
"""


@pytest.mark.parametrize(("ratio", "tonight_ms", "slower"), [(1.03, 5.3, True), (1.5, 7, False)])
def test_the_recipe_s_thresholds_decide_and_not_the_defaults(
    store: EngineStore,
    publish: Publish,
    tmp_path: Path,
    ratio: float,
    tonight_ms: float,
    slower: bool,
) -> None:
    old = publish(engine=b"old")
    promote(store)
    new = publish(engine=b"new", graph=b"v2", minutes=1)
    nights = [date(2026, 11, 1) + timedelta(days=day) for day in range(8)]
    BenchmarkTables(store.objects).append(
        [row(old, night, 5 + 0.01 * index) for index, night in enumerate(nights[:7])]
        + [row(new, nights[7], tonight_ms)]
    )
    by_default = tonight_ms > 1.1 * 5.03
    assert by_default != slower
    convolutions(tmp_path / "model.onnx")
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("RATIO", str(ratio)))
    site = Site(store, BlobCache(tmp_path / "cache"))
    standings = nightly.recipe_states(site, [file], local_offers())
    assert [one.error for one in standings] == [""]
    found = nightly.find_slowdowns(site, standings, nights[7])
    assert [one.recipe for one in found] == (["model"] if slower else [])
    assert ('s-slower">▲' in page(store, nights=3650)) == slower
    if slower:
        assert "limit 5.18 ms" in refusal(store)
    else:
        promote(store)
        assert specs(store) == {new.spec_digest}


def test_a_damaged_rule_stops_the_promotion(store: EngineStore, publish: Publish) -> None:
    publish()
    store.objects.put("benchmarks/rules/model.json", b'{"latency_ratio": "low"}')
    with pytest.raises(CorruptBlob, match=r"rules/model\.json is not a valid Regression"):
        promote(store)


def test_with_a_trust_key_unsigned_engines_are_refused(
    store: EngineStore, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, _ = signing.generate(tmp_path / "farm.pem")
    trust = signing.trust({"ENGINEFARM_TRUST": str(public)})
    publish()
    assert "signature: it is not signed" in refusal(store, trust=trust)
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(tmp_path / "farm.pem"))
    signed = publish(graph=b"v2", minutes=1)
    promote(store, trust=trust)
    assert specs(store) == {signed.spec_digest}


def test_of_sixteen_promoters_one_wins_and_the_others_are_told(
    store: EngineStore, publish: Publish, make_store: object
) -> None:
    publish()
    promote(store)

    def race(number: int) -> str:
        try:
            release.promote(store, "model", "production", by=f"racer-{number}", why="race")
        except StoreConflict as error:
            return error.what
        return "won"

    before = channels.current(store, "model", "production")
    with pytest.MonkeyPatch.context() as patch:
        # All of them have seen the same revision before any of them moves.
        patch.setattr(release, "current", lambda *_: before)
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(race, range(16)))
    told = [result for result in results if "somebody else moved it first" in result]
    assert (results.count("won"), len(told)) == (1, 15)
    assert [one.revision for one in channels.history(store, "model", "production")] == [2, 1]


def test_rollback_is_a_new_revision(store: EngineStore, publish: Publish) -> None:
    first = publish(graph=b"v1")
    promote(store)
    publish(graph=b"v2", minutes=1)
    promote(store)
    back = release.rollback(store, "model", "production", why="wrong boxes", by="ana")
    assert specs(store) == {first.spec_digest}
    assert (back.revision, back.action, back.source) == (3, "rollback", "revision 1")
    release.rollback(store, "model", "production", to=2)
    assert first.spec_digest not in specs(store)
    with pytest.raises(StoreMissing, match="no revision 99"):
        release.rollback(store, "model", "production", to=99)


def test_a_person_can_stop_a_move(store: EngineStore, publish: Publish) -> None:
    publish()

    def no(manifests: object, results: object) -> None:
        raise GateError("promote: refused by ana")

    with pytest.raises(GateError, match="ana"):
        promote(store, approve=no)
    assert channels.current(store, "model", "production") is None


def test_what_is_lost_while_a_person_thinks_is_not_promoted(
    store: EngineStore, publish: Publish
) -> None:
    manifest = publish()

    def yes(manifests: object, results: object) -> release.Approval:
        store.objects.delete(layout.blob(manifest.engine))
        return release.Approval(by="ana", why="")

    with pytest.raises(GateError) as refused:
        promote(store, approve=yes)
    assert "bytes are not in the store" in refused.value.why
    assert channels.current(store, "model", "production") is None


def test_revisions_list_newest_first(store: EngineStore, publish: Publish) -> None:
    publish()
    for _ in range(12):
        promote(store)
    assert [one.revision for one in channels.history(store, "model", "production")] == list(
        range(12, 0, -1)
    )
    now = channels.current(store, "model", "production")
    assert now is not None
    assert now.revision == 12


def test_names() -> None:
    assert channels.split("model") == ("model", None)
    assert channels.split("model@production") == ("model", "production")
    with pytest.raises(UsageError):
        channels.split("model@")


def test_a_tighter_budget_stops_a_promotion(store: EngineStore, publish: Publish) -> None:
    """Case 45d: published under the defaults, and over the budget of today."""
    manifest = publish()
    tight = {manifest.precision: Budget(min_cosine=0.99, min_top1_agreement=0.5)}
    store.objects.put("budgets/model.json", budgets.Budgets(of=tight).canonical_json())
    assert "the budget needs top-1 agreement" in refusal(store)
    over = manifest.verification.model_copy(
        update={"outputs": (manifest.verification.outputs[0].model_copy(update={"cosine": 0.5}),)}
    )
    reference = manifest.engine
    again = reverification.write(
        store,
        "model",
        manifest.spec_digest,
        manifest.graph,
        over.model_copy(update={"asked": "b" * 64}),
        reference,
    )
    assert again is not None
    assert again.device_verification.status == "pending", "its GPU saw the figures before"
    assert store.manifest(manifest.spec_digest) == again
    assert "y: cosine 0.5 is below 0.99" in refusal(store, allow_pending=True)
    store.objects.put("budgets/model.json", b"no")
    with pytest.raises(CorruptBlob, match="is not a valid Budgets"):
        promote(store)
