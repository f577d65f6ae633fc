"""`enginefarm verify`, `sign` and `keygen`: signatures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginefarm.cli import completion
from enginefarm.cli.options import NamedPath
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import EnginefarmError, SignatureRejected
from enginefarm.store import open_store

if TYPE_CHECKING:
    from enginefarm.documents.manifest import Manifest
    from enginefarm.store.engine_store import EngineStore


@click.command()
@click.argument("name", metavar="NAME[@CHANNEL]", shell_complete=completion.engines)
@click.option("--bytes", "read_bytes", is_flag=True, help="Also download and hash each engine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(name: str, read_bytes: bool, as_json: bool) -> None:
    """Check the signatures of a recipe's engines, of their names, and of a channel's revision."""
    from enginefarm.pulling.catalog import StoreCatalog, require_trusted
    from enginefarm.store.channels import split
    from enginefarm.store.signing import trust

    trusted = trust()
    if trusted is None:
        raise SignatureRejected(
            "verify: no trust key is configured", fix="set ENGINEFARM_TRUST to a public key"
        )
    store = open_store()
    catalog = StoreCatalog(store)
    rows: list[tuple[str, str, str]] = []
    failed: list[EnginefarmError] = []
    recipe, channel = split(name)
    for manifest in catalog.manifests(recipe, channel, trusted):
        try:
            keyid = require_trusted(catalog, recipe, manifest, trusted)
            if read_bytes:
                _hash(store, manifest)
            rows.append((manifest.spec.label, manifest.spec_digest[:12], f"signed by {keyid[:12]}"))
        except EnginefarmError as error:
            failed.append(error)
            rows.append((manifest.spec.label, manifest.spec_digest[:12], error.why or error.what))
    if as_json:
        print_json([dict(zip(("engine", "spec", "verdict"), row, strict=True)) for row in rows])
    else:
        print_table(f"Signatures of {name}", ("engine", "spec", "verdict"), rows)
    if failed:
        raise type(failed[0])(
            f"verify {name}: {len(failed)} of {len(rows)} engines are refused",
            why=failed[0].what,
            fix=failed[0].fix,
        )


def _hash(store: EngineStore, manifest: Manifest) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store.fetch_blob(manifest.engine, Path(folder) / "engine")


@click.command()
@click.argument("name", metavar="NAME[@CHANNEL]", shell_complete=completion.engines)
@click.option(
    "--vouch",
    is_flag=True,
    help="Also sign engines without a trusted builder's record, and unsigned results of GPUs; you "
    "vouch for them.",
)
def sign(name: str, vouch: bool) -> None:
    """Sign the engines of a recipe or channel that were published without a key.

    Their bytes are downloaded and hashed first. Without --vouch an engine is signed only when
    a builder with a trusted key recorded that it built it: anybody who can write to the store can
    publish, and with your signature you vouch for the engine.
    """
    from enginefarm.pulling.catalog import StoreCatalog
    from enginefarm.store.channels import split
    from enginefarm.store.statements import (
        name_it,
        sign_device_result,
        signing_policy,
        trusted_on_device,
    )

    policy = signing_policy()
    if policy is None:
        raise SignatureRejected(
            "sign: no key is configured",
            fix="enginefarm keygen farm.pem, then set ENGINEFARM_SIGNING_KEY=farm.pem",
        )
    store = open_store()
    recipe, channel = split(name)
    for manifest in StoreCatalog(store).manifests(recipe, channel):
        if vouch and trusted_on_device(manifest, policy.trust) is not manifest:
            sign_result = partial(sign_device_result, signer=policy.signer)
            store.rewrite(manifest.spec_digest, sign_result)
            click.echo(f"{manifest.spec.label} {manifest.spec_digest[:12]} its GPU's result signed")
        if policy.signed(store, manifest):
            name_it(store, recipe, manifest, policy.signer)
            click.echo(f"{manifest.spec.label} {manifest.spec_digest[:12]} is already signed")
            continue
        if not (vouch or policy.speaks_for(store, manifest)):
            raise SignatureRejected(
                f"sign: {manifest.recipe} {manifest.spec.label} ({manifest.spec_digest[:12]}) is "
                "not signed",
                why="no record that a trusted builder signed says that it was built",
                fix="build it again with ENGINEFARM_SIGNING_KEY set; or add --vouch when you "
                "know where it comes from",
            )
        _hash(store, manifest)
        store.attest(manifest, policy.signer)
        name_it(store, recipe, manifest, policy.signer)
        click.echo(f"{manifest.spec.label} {manifest.spec_digest[:12]} signed")


@click.command()
@click.argument("path", type=NamedPath(path_type=Path, dir_okay=False))
def keygen(path: Path) -> None:
    """Make a signing key at PATH (mode 0600), and its public key next to it."""
    from enginefarm.store import signing

    public, keyid = signing.generate(path)
    click.echo(f"private key  {path}  (on the farm: ENGINEFARM_SIGNING_KEY={path})")
    click.echo(f"public key   {public}  (on hosts: ENGINEFARM_TRUST={public})")
    click.echo(f"key id       {keyid}")
