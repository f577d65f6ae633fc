"""infra/s3-policies, each given to a user of a real S3 server: what the role does works, and
everything else is refused by the server itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from enginefarm.documents.spec import BlobRef
from enginefarm.errors import StoreDenied
from enginefarm.pulling import presigned
from enginefarm.recipes import recipe_store
from enginefarm.store import channels, s3
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.s3 import Credentials
from enginefarm.store.weed import free_ports
from tests import tiny_recipe
from tests.farm.weed_server import weed_server
from tests.sample_manifest import make_manifest

POLICIES = Path(__file__).parents[3] / "infra" / "s3-policies"
ROLES = ("pull", "fleet", "farm", "promote", "recipes", "collect")
POLICIES_OF = {"fleet": ("pull", "fleet")}
"""A host that tells what it runs has two files; each other role has the file of its name."""
BUCKET = "engines"
ADMIN = Credentials("admin", "admin-secret")
CHANNEL = "channels/sample/production/99999998.json"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EngineStore]]:
    """The same bucket, opened as the admin and as each role."""
    folder = tmp_path_factory.mktemp("policies")
    (folder / "data").mkdir()
    (folder / "s3.json").write_text(
        json.dumps(
            {
                "identities": [
                    {
                        "name": "admin",
                        "credentials": [
                            {"accessKey": ADMIN.access_key, "secretKey": ADMIN.secret_key}
                        ],
                        "actions": ["Admin"],
                    }
                ]
            }
        )
    )
    (port,) = free_ports(1)
    arguments = [
        "server",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-volume.max=4096",
        "-filer",
        "-s3",
        f"-s3.port={port}",
        f"-s3.config={folder / 's3.json'}",
        "-s3.iam.readOnly=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
    ]
    with weed_server(arguments, port, folder / "log") as endpoint:
        keys = {"admin": ADMIN} | {role: user(endpoint, role) for role in ROLES}
        found = {
            role: EngineStore(
                s3.connect(f"s3://{BUCKET}", endpoint=endpoint, credentials=key), f"s3://{BUCKET}"
            )
            for role, key in keys.items()
        }
        found["admin"].objects.create_bucket()
        publish(found["admin"])
        found["admin"].objects.put(CHANNEL, b"{}")
        wait_for_rights(found["collect"])
        yield found


def user(endpoint: str, role: str) -> Credentials:
    iam = boto3.client(
        "iam",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ADMIN.access_key,
        aws_secret_access_key=ADMIN.secret_key,
    )
    iam.create_user(UserName=role)
    key = iam.create_access_key(UserName=role)["AccessKey"]
    for policy in POLICIES_OF.get(role, (role,)):
        document = (POLICIES / f"{policy}.json").read_text("utf-8").replace("BUCKET", BUCKET)
        iam.put_user_policy(UserName=role, PolicyName=policy, PolicyDocument=document)
    return Credentials(key["AccessKeyId"], key["SecretAccessKey"])


def wait_for_rights(store: EngineStore) -> None:
    for _ in range(50):
        try:
            list(store.index())
            return
        except StoreDenied:
            time.sleep(0.1)
    raise AssertionError("the last user's policy never came into force")


def publish(store: EngineStore) -> BlobRef:
    engine = store.put_bytes(b"engine")
    graph = store.put_bytes(b"graph")
    manifest = make_manifest()
    manifest = manifest.model_copy(
        update={
            "engine": engine,
            "graph": manifest.graph.model_copy(update={"model": graph, "data": None}),
        }
    )
    store.publish(manifest)
    return engine


def denied(action: Callable[[], object]) -> None:
    with pytest.raises(StoreDenied):
        action()


@pytest.mark.usefixtures("no_gpu_here")
def test_an_inference_host_makes_urls(
    stores: dict[str, EngineStore], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path))
    monkeypatch.setattr(presigned, "open_store", lambda: stores["pull"])
    url, _ = presigned.presign("model", gpu="t4", precision=None, expires_s=60)
    assert url.ref.size_bytes == len(b"engine")


def test_an_inference_host_finds_and_downloads(
    stores: dict[str, EngineStore], tmp_path: Path
) -> None:
    store = stores["pull"]
    (manifest,) = store.manifests()
    assert store.fetch_blob(manifest.engine, tmp_path / "engine").read_bytes() == b"engine"
    assert store.objects.get(CHANNEL)
    assert store.manifest("0" * 64) is None, "absence is seen as absence, not as a refusal"


def test_an_inference_host_writes_nothing_and_sees_no_stage(
    stores: dict[str, EngineStore],
) -> None:
    store = stores["pull"]
    denied(lambda: store.put_bytes(b"new"))
    denied(lambda: store.objects.put("manifests/x.json", b"{}"))
    denied(lambda: store.objects.put(CHANNEL, b"{}"))
    denied(lambda: store.objects.delete(CHANNEL))
    denied(lambda: store.stage("export", "0" * 64))
    denied(lambda: list(store.objects.list("")))


def test_a_host_that_knows_its_digest_reads_any_blob_and_none_can_be_listed(
    stores: dict[str, EngineStore], tmp_path: Path
) -> None:
    """Calibration data is a blob too: docs/security.md says who can read it."""
    data = stores["admin"].put_bytes(b"calibration data")
    for role in ("pull", "farm"):
        assert stores[role].read_bytes(data) == b"calibration data"
    denied(lambda: list(stores["pull"].objects.list("blobs/")))


def test_a_host_tells_what_it_runs_and_writes_nothing_else(
    stores: dict[str, EngineStore],
) -> None:
    told = "fleet/sample/production/host/t4-any.json"
    stores["fleet"].objects.put(told, b"{}")
    denied(lambda: stores["pull"].objects.put(told, b"{}"))
    denied(lambda: stores["fleet"].objects.delete(told))
    for key in ("manifests/x.json", "index/x", "recipes/x.json", CHANNEL, "workers/t4/x.json"):
        denied(lambda key=key: stores["fleet"].objects.put(key, b"{}"))
    assert stores["promote"].objects.get(told), "who promotes sees what hosts run"


def test_what_the_star_of_a_policy_also_matches_is_no_revision(
    stores: dict[str, EngineStore],
) -> None:
    """`channels/*/candidate/*` matches this key, since a star in S3 matches slashes."""
    stray = "channels/sample/production/candidate/00000001.json"
    stores["farm"].objects.put(stray, b"{}")
    assert list(channels.keys(stores["pull"], "sample", "production")) == [CHANNEL]
    stores["admin"].objects.delete(stray)


def test_a_worker_publishes(stores: dict[str, EngineStore], tmp_path: Path) -> None:
    store = stores["farm"]
    assert store.fetch_blob(publish(store), tmp_path / "e").read_bytes() == b"engine"
    large = tmp_path / "large"
    large.write_bytes(bytes(40 << 20))  # in parts
    assert store.has_blob(store.put_blob(large))
    assert store.objects.put_if_absent("channels/sample/candidate/99999998.json", b"{}")


def test_no_recipe_or_channel_name_makes_another_channel_writable(
    stores: dict[str, EngineStore],
) -> None:
    """`channels/*/candidate/*`: the stars must not reach over to production."""
    store = stores["farm"]
    denied(lambda: store.objects.put("channels/candidate/production/1.json", b"{}"))
    denied(lambda: store.objects.put("channels/sample/candidate", b"{}"))


def test_a_worker_promotes_nothing(stores: dict[str, EngineStore]) -> None:
    store = stores["farm"]
    denied(lambda: store.objects.put(CHANNEL, b'{"other": true}'))
    denied(lambda: store.objects.delete(CHANNEL))
    assert stores["admin"].objects.get(CHANNEL)[0] == b"{}"


def test_who_promotes_moves_channels_and_nothing_else(stores: dict[str, EngineStore]) -> None:
    store = stores["promote"]
    _, etag = store.objects.get(CHANNEL)
    store.objects.put_if_match(CHANNEL, b"{}", etag)
    denied(lambda: store.put_bytes(b"other engine"))
    denied(lambda: store.objects.put("manifests/x.json", b"{}"))
    denied(lambda: store.objects.delete(CHANNEL))


def test_who_pushes_recipes_brings_code_and_no_engine(
    stores: dict[str, EngineStore], tmp_path: Path
) -> None:
    tiny_recipe.write(tmp_path)
    pushing = stores["recipes"]
    assert recipe_store.push(pushing, tmp_path).name == "tiny"
    assert recipe_store.names(pushing) == ("tiny",)
    assert recipe_store.read(stores["farm"], "tiny").name == "tiny"
    denied(lambda: pushing.objects.put("manifests/x.json", b"{}"))
    denied(lambda: pushing.objects.put(CHANNEL, b"{}"))
    # What a worker runs as code, no worker can write.
    denied(lambda: recipe_store.push(stores["farm"], tmp_path))
    recipe_store.remove(pushing, "tiny")


def test_the_collector_deletes_and_never_writes(stores: dict[str, EngineStore]) -> None:
    stores["admin"].objects.put("stages/export/old.json", b"{}")
    store = stores["collect"]
    store.objects.delete("stages/export/old.json")
    denied(lambda: store.put_bytes(b"other engine"))
    denied(lambda: store.objects.put(CHANNEL, b"{}"))
    denied(lambda: store.objects.delete(CHANNEL))


@pytest.mark.parametrize("role", ROLES)
def test_no_role_changes_the_bucket(stores: dict[str, EngineStore], role: str) -> None:
    objects = stores[role].objects
    for call, arguments in (
        ("delete_bucket_policy", {}),
        ("put_bucket_versioning", {"VersioningConfiguration": {"Status": "Suspended"}}),
        ("delete_bucket", {}),
    ):
        with pytest.raises(objects.client.exceptions.ClientError, match="AccessDenied"):
            getattr(objects.client, call)(Bucket=BUCKET, **arguments)
