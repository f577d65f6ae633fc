"""The findings of an audit of the store, its state while it runs, and the kinds of documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.documents.thresholds import Regression
from enginefarm.progress import report
from enginefarm.pulling import fleet
from enginefarm.schema import Frozen
from enginefarm.store import budgets, layout, quarantine
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.object_info import ObjectInfo
from enginefarm.store.reading import read
from enginefarm.store.site import Site
from enginefarm.tables import layers, rules, speeds


class AuditFinding(Frozen):
    """One fault in the store.

    repair: what repairs it. repaired: whether that was done. fix: what a person can do about a
    fault that cannot be repaired here.
    """

    key: str
    what: str
    repair: str = ""
    repaired: bool = False
    fix: str = ""
    harmless: bool = False


class Audit(Frozen):
    """The result of an audit: how much was checked, and every finding."""

    objects: int
    engines: int
    bytes_hashed: int
    findings: tuple[AuditFinding, ...]

    @property
    def open(self) -> tuple[AuditFinding, ...]:
        """The findings that are neither repaired nor harmless."""
        return tuple(one for one in self.findings if not one.repaired and not one.harmless)


class AuditState:
    """The state of a running audit: the blobs that exist, and the findings so far."""

    def __init__(self, site: Site, repair: bool, read_bytes: bool) -> None:
        self.site = site
        self.store = site.store
        self.repair = repair
        self.read_bytes = read_bytes
        self.findings: list[AuditFinding] = []
        self.present: set[str] = set()
        self.complete: dict[str, Manifest] = {}
        self.unreadable: set[str] = set()
        self.objects = 0
        self.engines = 0
        self.bytes_hashed = 0

    def listed(self, prefix: str) -> Iterator[ObjectInfo]:
        for info in self.store.objects.list(prefix):
            self.objects += 1
            report("fsck", self.objects, None, info.key)
            yield info

    def add_repairable(
        self, key: str, what: str, repair: str, act: Callable[[], object] | None = None
    ) -> None:
        """Adds a fault that can be repaired. With `repair`, calls `act`, or deletes the object."""
        if self.repair:
            (act or partial(self.store.objects.delete, key))()
        self.findings.append(AuditFinding(key=key, what=what, repair=repair, repaired=self.repair))

    def add(self, key: str, what: str, *, fix: str = "", harmless: bool = False) -> None:
        """Adds a fault that cannot be repaired here."""
        self.findings.append(AuditFinding(key=key, what=what, fix=fix, harmless=harmless))

    def missing_blobs(self, refs: tuple[BlobRef, ...], key: str) -> tuple[BlobRef, ...]:
        """The blobs that neither the store nor this machine's cache has.

        With `repair`, those in the cache are uploaded again.
        """
        gone: list[BlobRef] = []
        for ref in refs:
            if ref.digest in self.present:
                continue
            kept_here = self.site.cache.intact(ref)
            if kept_here is None:
                gone.append(ref)
                continue
            self.add_repairable(
                layout.blob(ref),
                f"the blob is lost, and {key} names it",
                "uploaded from this machine's cache",
                lambda path=kept_here: self.store.put_blob(path),
            )
            self.present.add(ref.digest)
        return tuple(gone)


Reader = Callable[[EngineStore, str], object]


def _quarantined(store: EngineStore, key: str) -> object:
    return quarantine.quarantined(store, PurePosixPath(key).stem)


def _of(model: type[Frozen]) -> Reader:
    return lambda store, key: read(store.objects, key, model)


class Kind(NamedTuple):
    """Documents of one kind. made_again: what writes a deleted one again; empty if nothing does, so
    that a person has to look at a damaged one."""

    prefix: str
    read: Reader
    made_again: str


KINDS = (
    Kind(quarantine.QUARANTINE, _quarantined, ""),
    Kind(budgets.BUDGETS, _of(budgets.Budgets), "the next build of the recipe"),
    Kind(rules.RULES, _of(Regression), "the next build of the recipe"),
    Kind(speeds.PREFIX, _of(speeds.Speeds), "the next measurement"),
    Kind(layers.PREFIX, _of(layers.LayerTimes), "the next profile"),
    Kind(fleet.PREFIX, fleet.state_of, "its host, at its next switch"),
)
