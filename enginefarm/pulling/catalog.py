"""Catalogs, where pull looks up manifests: the store, or the earlier pulls of this host."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from enginefarm.documents.manifest import Manifest
from enginefarm.errors import CorruptBlob, NewerVersion, StoreMissing, command
from enginefarm.store import channels, statements, untrusted_files
from enginefarm.store.budgets import Budgets, recorded
from enginefarm.store.cache import BlobCache
from enginefarm.store.disk import write_atomically
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.reading import parsed
from enginefarm.store.seen_revisions import SeenRevisions
from enginefarm.store.signing import Trust
from enginefarm.tables.speeds import Speed
from enginefarm.tables.speeds import read as read_speeds


def listed(
    store: EngineStore,
    recipe: str | None = None,
    gpu: str | None = None,
    precision: str | None = None,
) -> tuple[Manifest, ...]:
    """A store's engines, sorted by recipe, GPU, precision and age, newest first."""
    found = store.as_listed(recipe, gpu, precision)
    return tuple(
        sorted(found, key=lambda m: (m.recipe, m.gpu, m.precision, -m.created_at.timestamp()))
    )


class Catalog(Protocol):
    def manifests(
        self, recipe: str, channel: str | None, trust: Trust | None = None
    ) -> tuple[Manifest, ...]:
        """The engines of a recipe, or those that its channel names.

        trust: one of these keys must have signed the channel's revision, which must not be older
        than one that this host has seen (SignatureRejected).
        Raises: StoreMissing when the recipe has no engine; NewerVersion when this version cannot
        read any of them.
        """
        ...

    def attestation(self, manifest: Manifest) -> bytes | None:
        """The signed envelope; None if the engine is not signed."""
        ...

    def alias(self, recipe: str, manifest: Manifest) -> bytes | None:
        """The signed statement that the name stands for another recipe's engine."""
        ...

    def budgets(self, recipe: str) -> Budgets:
        """The recipe's accuracy budgets that are known."""
        ...

    def speeds(self, manifests: Iterable[Manifest], gpu: str) -> Mapping[str, tuple[Speed, ...]]:
        """The measurements of each engine on that GPU, by spec digest."""
        ...


def require_trusted(catalog: Catalog, recipe: str, manifest: Manifest, trust: Trust) -> str:
    """The id of the trusted key that signed the engine.

    Raises: SignatureRejected if none did, or if none signed that the recipe's name stands for it.
    """
    keyid = trust.require(manifest, catalog.attestation(manifest))
    statements.require_name(recipe, manifest, catalog.alias(recipe, manifest), trust)
    return keyid


class StoreCatalog:
    def __init__(self, store: EngineStore, seen: SeenRevisions | None = None) -> None:
        self._store = store
        self._seen = seen

    def manifests(
        self, recipe: str, channel: str | None, trust: Trust | None = None
    ) -> tuple[Manifest, ...]:
        if channel is not None:
            revision = channels.require_current(self._store, recipe, channel, trust)
            if trust is not None and self._seen is not None:
                self._seen.require_no_older(self._store.url, revision)
            return channels.manifests_of(self._store, revision)
        found = tuple(self._store.manifests(recipe))
        if not found:
            for digest in self._store.complete(recipe):  # listed, but left out with a note
                self._store.manifest(digest)  # raises the reason
            raise self._store.no_engine(recipe, "pull")
        return found

    def attestation(self, manifest: Manifest) -> bytes | None:
        return self._store.attestation(manifest)

    def alias(self, recipe: str, manifest: Manifest) -> bytes | None:
        return statements.read_alias(self._store, recipe, manifest)

    def budgets(self, recipe: str) -> Budgets:
        return recorded(self._store, recipe)

    def speeds(self, manifests: Iterable[Manifest], gpu: str) -> Mapping[str, tuple[Speed, ...]]:
        ours = [one for one in manifests if one.gpu == gpu]
        of = {
            recipe: read_speeds(self._store.objects, recipe, gpu)
            for recipe in {one.recipe for one in ours}
        }
        found = {one.spec_digest: of[one.recipe].engine(one.spec_digest) for one in ours}
        return {spec: speeds for spec, speeds in found.items() if speeds}


class CachedCatalog:
    """Earlier pulls of this host: manifests whose engine is in the cache.

    records/<recipe>/<spec_digest>.json            manifest
    records/<recipe>/<spec_digest>.dsse.json       its signature
    records/<recipe>/<spec_digest>.alias.json      signed name of another recipe's engine
    records/<recipe>/<channel>.channel.json        spec digests that were pulled from the channel
    """

    def __init__(self, cache: BlobCache) -> None:
        self._cache = cache

    def _folder(self, recipe: str) -> Path:
        return self._cache.root / "records" / recipe

    def remember(
        self, recipe: str, manifest: Manifest, channel: str | None, proofs: Catalog | None
    ) -> None:
        """Records what was pulled under that name, so that --offline finds it again.

        proofs: the catalog with its signatures, for a host that checks them.
        """
        folder = self._folder(recipe)
        named = {f"{manifest.spec_digest}.json": manifest.canonical_json()}
        if proofs is not None:
            found = {"dsse": proofs.attestation(manifest), "alias": proofs.alias(recipe, manifest)}
            named |= {
                f"{manifest.spec_digest}.{kind}.json": body
                for kind, body in found.items()
                if body is not None
            }
        if channel is not None:
            specs = [manifest.spec_digest]
            named[f"{channel}.channel.json"] = json.dumps(specs).encode()
        for name, data in named.items():
            path = folder / name
            if untrusted_files.read(path) != data:
                write_atomically(path, data)

    def manifests(
        self, recipe: str, channel: str | None, trust: Trust | None = None
    ) -> tuple[Manifest, ...]:
        folder = self._folder(recipe)
        names = sorted(folder.glob("?" * 64 + ".json"))
        if channel is not None:
            wanted = self._channel(folder / f"{channel}.channel.json")
            names = [path for path in names if path.stem in wanted]
        read = (self._manifest(path) for path in names)
        found = tuple(one for one in read if one is not None and self._cache.has(one.engine))
        if not found:
            name = recipe if channel is None else f"{recipe}@{channel}"
            raise StoreMissing(
                f"{command('pull')}: no engine of {name!r} is in the cache {self._cache.root}",
                fix="pull it once without --offline",
            )
        return found

    def budgets(self, recipe: str) -> Budgets:
        """No budgets: a pulled engine met the budget at the time of its pull."""
        return Budgets()

    def speeds(self, manifests: Iterable[Manifest], gpu: str) -> Mapping[str, tuple[Speed, ...]]:
        """No figures: they are only in the store."""
        return {}

    def attestation(self, manifest: Manifest) -> bytes | None:
        found = (self._cache.root / "records").glob(f"*/{manifest.spec_digest}.dsse.json")
        path = next(found, None)
        return untrusted_files.read(path) if path is not None else None

    def alias(self, recipe: str, manifest: Manifest) -> bytes | None:
        path = self._folder(recipe) / f"{manifest.spec_digest}.alias.json"
        return untrusted_files.read(path)

    @staticmethod
    def _manifest(path: Path) -> Manifest | None:
        try:
            manifest = parsed(path.name, untrusted_files.read(path) or b"", Manifest)
        except (CorruptBlob, NewerVersion):  # another version wrote it
            return None
        return manifest if manifest.spec.digest == path.stem else None

    @staticmethod
    def _channel(path: Path) -> frozenset[str]:
        try:
            return frozenset(json.loads(untrusted_files.read(path) or b"[]"))
        except (ValueError, TypeError, RecursionError):
            return frozenset()
