"""A worker signs with the key that a secret block of the Prefect server holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, temporary_settings

from enginefarm.errors import FarmError, SignatureRejected
from enginefarm.store import signing
from tests import tiny_recipe
from tests.farm.farm_fixture import Farm


def test_engines_are_signed_by_the_key_in_the_block(farm: Farm, tmp_path: Path) -> None:
    made = farm.command("keygen", str(tmp_path / "farm.pem"))
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "farm.pem").read_text()
    with temporary_settings({PREFECT_API_URL: farm.api}):
        Secret(value=text).save("farm-key", overwrite=True)
    named = {"ENGINEFARM_SIGNING_KEY_BLOCK": "farm-key"}
    tiny_recipe.write(
        farm.recipes / "signed", name="signed", salt="signed", gpus=["l40s"], precisions=["fp16"]
    )
    farm.start_worker("signing", "--gpu", "l40s", "--cross", **named)
    try:
        run = farm.run("build-model/build-model", recipe="signed")
        assert run.state.is_completed(), run.state.message
        assert text.splitlines()[1] not in farm.log("signing")
    finally:
        farm.stop("signing")
    (manifest,) = farm.store.manifests("signed")
    envelope = farm.store.read_document(signing.attestation_key(manifest))
    assert envelope is not None
    trust = signing.trust({"ENGINEFARM_TRUST": str(tmp_path / "farm.pub.pem")})
    assert trust is not None
    assert trust.require(manifest, envelope[0])


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("no-such-key", None, FarmError, "the server has none of that name"),
        ("not-text", {"a": 1}, FarmError, "holds no text"),
        ("not-a-key", "rubbish", SignatureRejected, "cannot be read"),
    ],
)
def test_a_block_that_is_no_key_stops_the_worker(
    farm: Farm, name: str, value: object, error: type[FarmError], said: str
) -> None:
    if value is not None:
        with temporary_settings({PREFECT_API_URL: farm.api}):
            Secret(value=value).save(name, overwrite=True)
    refused = farm.command("worker", "--gpu", "l40s", "--cross", ENGINEFARM_SIGNING_KEY_BLOCK=name)
    assert refused.returncode == error.exit_code, refused.stderr
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
