"""Creates and pulls presigned URLs, for hosts without credentials."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from enginefarm.documents.manifest import Manifest
from enginefarm.errors import SignatureRejected
from enginefarm.names import PrecisionName
from enginefarm.pulling.catalog import StoreCatalog
from enginefarm.pulling.place import copy_out
from enginefarm.pulling.pull import choose, file_name
from enginefarm.pulling.select import Candidate
from enginefarm.store import layout, open_store
from enginefarm.store.cache import BlobCache
from enginefarm.store.seen_revisions import SeenRevisions
from enginefarm.store.signing import Trust, attestation_key, trust
from enginefarm.store.sources import PresignedUrl, UrlSource, read_url

NOISE_S = 3
LONGEST_S = 7 * 24 * 3600
"""What signature version 4 allows."""


def presign(
    name: str, *, gpu: str, precision: PrecisionName | None, expires_s: int
) -> tuple[PresignedUrl, Candidate]:
    """A URL of the engine that fits, for a host without credentials. The URL of a signed engine
    also contains the URLs of its manifest and signature. Raises: as pull().
    """
    store = open_store()
    catalog = StoreCatalog(store, SeenRevisions(BlobCache().root))
    best = choose(name, catalog, gpu=gpu, precision=precision)
    manifest = best.manifest
    proofs = (layout.manifest(manifest.spec_digest), attestation_key(manifest))
    signed = catalog.attestation(manifest) is not None
    seconds = _by_our_clock(expires_s, store.objects.clock(layout.INDEX))
    url, *urls = (
        store.objects.presigned_get(key, seconds)
        for key in (layout.blob(manifest.engine), *(proofs if signed else ()))
    )
    return PresignedUrl(url, manifest.engine, file_name(manifest), *urls), best


def _by_our_clock(expires_s: int, server: datetime) -> int:
    """How long a URL is signed for, so that it works that long by the server's clock: the signature
    holds the time of this machine's. The server's is known to the second."""
    ahead_s = (server - datetime.now(UTC)).total_seconds()
    if abs(ahead_s) < NOISE_S:
        return expires_s
    return min(max(1, round(expires_s + ahead_s)), LONGEST_S)


def pull_url(text: str, *, dest: Path | str | None) -> Path:
    """Downloads what `enginefarm url` printed to the cache or to `dest`, and checks its digest.

    With a trust key the signature is checked before a byte of the engine is read.
    Raises: UsageError for a URL without a digest; SignatureRejected if this host has trust keys
    and none of them signed the engine; StoreDenied when the URL has expired; CorruptBlob,
    DiskFull, StoreUnavailable.
    """
    presigned = PresignedUrl.parse(text)
    trusted = trust()
    if trusted is not None:
        _require_signed(presigned, trusted)
    cache = BlobCache()
    blob = cache.path(presigned.ref)
    if not cache.has(presigned.ref):
        blob = cache.fill(UrlSource(presigned), presigned.ref)
    if dest is None:
        return cache.link(presigned.name, presigned.ref)
    path = Path(dest)
    return copy_out(blob, path / presigned.name if path.is_dir() else path, presigned.ref)


def _require_signed(presigned: PresignedUrl, trusted: Trust) -> None:
    """Raises: SignatureRejected without a signature of a trusted key over the URL's bytes."""
    if not presigned.manifest or not presigned.signature:
        raise SignatureRejected(
            "pull --url: this host accepts only signed engines, and this URL has no signature",
            fix="sign the engine (enginefarm sign), and ask for a new URL",
        )
    try:
        manifest = Manifest.read(read_url(presigned.manifest, "manifest"))
    except ValidationError as error:
        raise SignatureRejected(
            "pull --url: the manifest that the URL names was not written by this version",
            fix="update enginefarm on this host, or ask for a new URL",
        ) from error
    trusted.require(manifest, read_url(presigned.signature, "signature"))
    if manifest.engine != presigned.ref:
        raise SignatureRejected(
            "pull --url: the signature is for another engine than the URL",
            why=f"the signature is for {manifest.engine.digest[:12]}, and the URL for "
            f"{presigned.ref.digest[:12]}",
            fix="copy the whole line that `enginefarm url` printed",
        )
