"""The whole road on a second real S3 server: build, pull, promote, roll back, url, gc, fsck."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from enginefarm import cli
from enginefarm.building.engine import Job
from enginefarm.release.gc import Policy, collect
from enginefarm.store import check, s3
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site
from tests.fake_builds import made
from tests.integration.store.test_same_spec import jobs
from tests.second_server import KEY, second_server

URL = "s3://second/prefix"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with second_server(tmp_path_factory.mktemp("second")) as endpoint:
        s3.connect(URL, endpoint=endpoint, credentials=KEY).create_bucket()
        yield endpoint


@pytest.fixture
def second(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineStore:
    """A store on it, named in the environment as a user would."""
    url = f"{URL}/{tmp_path.name.replace('_', '-')}"
    for name, value in {
        "ENGINEFARM_STORE": url,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY.access_key,
        "AWS_SECRET_ACCESS_KEY": KEY.secret_key,
        "ENGINEFARM_CACHE": str(tmp_path / "host"),
    }.items():
        monkeypatch.setenv(name, value)
    return EngineStore(s3.connect(url, endpoint=endpoint, credentials=KEY), url)


def run(*arguments: str) -> None:
    assert cli.run(list(arguments)) == 0, arguments


def test_it_does_all_that_the_farm_needs(second: EngineStore) -> None:
    assert [one for one in check.checks(second.objects) if one.failure] == []


@pytest.mark.usefixtures("no_gpu_here")
def test_from_recipe_to_pull_promote_rollback_and_gc(
    second: EngineStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check.require_conditional_writes(second.objects)
    site = Site(store=second, cache=BlobCache(tmp_path / "worker"))
    engines = []
    for salt in ("one", "two"):
        (job,) = jobs(second, tmp_path / salt, gpus=["a100"], precisions=["fp16"], salt=salt)
        assert isinstance(job, Job)
        engines.append(made(site, job))
        run("pull", "tiny", "--gpu", "a100", "--dest", str(tmp_path / f"{salt}.plan"))
        run("promote", "tiny", "--allow-pending", "--why", salt)
    first, second_engine = engines
    run("rollback", "tiny", "production", "--why", "wrong boxes")
    capsys.readouterr()
    run("pull", "tiny@production", "--gpu", "a100", "--json")
    assert first.spec_digest in capsys.readouterr().out

    run("url", "tiny@production", "--gpu", "a100", "--expires-s", "60")
    line = capsys.readouterr().out.strip()
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in line
    run("pull", "--url", line, "--dest", str(tmp_path / "by-url.plan"))
    assert (tmp_path / "by-url.plan").read_bytes() == (tmp_path / "one.plan").read_bytes()

    stray = second.put_bytes(b"nobody names this")
    later = second.objects.clock() + timedelta(days=30)
    policy = Policy(keep_builds=1, keep_revisions=1)
    collected = collect(second, policy, delete=True, now=later)
    assert stray.digest in {one.key.rpartition("/")[2] for one in collected.garbage}
    assert second.complete("tiny") == {first.spec_digest, second_engine.spec_digest}
    run("fsck", "--bytes")
