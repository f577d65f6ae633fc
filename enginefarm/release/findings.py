"""What an audit of the store found, and the state of one audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.progress import report
from enginefarm.schema import Frozen
from enginefarm.store import layout
from enginefarm.store.object_info import ObjectInfo
from enginefarm.store.site import Site


class Finding(Frozen):
    """One thing in the store that is wrong.

    mend: what repairs it; `mended`: that it was done. Of a finding without a mend, `fix` says
    what a person can do.
    """

    key: str
    what: str
    mend: str = ""
    mended: bool = False
    fix: str = ""
    harmless: bool = False


class Audit(Frozen):
    """What was looked at, and what was found."""

    objects: int
    engines: int
    bytes_hashed: int
    findings: tuple[Finding, ...]

    @property
    def open(self) -> tuple[Finding, ...]:
        """What is still wrong."""
        return tuple(one for one in self.findings if not one.mended and not one.harmless)


class AuditState:
    """The state of one audit: which blobs are there, and what was found so far."""

    def __init__(self, site: Site, repair: bool, read_bytes: bool) -> None:
        self.site = site
        self.store = site.store
        self.repair = repair
        self.read_bytes = read_bytes
        self.findings: list[Finding] = []
        self.present: set[str] = set()
        self.complete: dict[str, Manifest] = {}
        self.unreadable: set[str] = set()
        self.objects = 0
        self.engines = 0
        self.bytes_hashed = 0

    def listed(self, prefix: str) -> Iterator[ObjectInfo]:
        for info in self.store.list_objects(prefix):
            self.objects += 1
            report("fsck", self.objects, None, info.key)
            yield info

    def add_repairable(self, key: str, what: str, mend: str, act: Callable[[], object]) -> None:
        """Something that can be mended; `act` mends it."""
        if self.repair:
            act()
        self.findings.append(Finding(key=key, what=what, mend=mend, mended=self.repair))

    def add(self, key: str, what: str, *, fix: str = "", harmless: bool = False) -> None:
        """Something that nothing here can mend."""
        self.findings.append(Finding(key=key, what=what, fix=fix, harmless=harmless))

    def delete(self, key: str) -> Callable[[], object]:
        return lambda: self.store.delete_object(key)

    def missing_blobs(self, refs: tuple[BlobRef, ...], key: str) -> tuple[BlobRef, ...]:
        """The blobs that the store lacks and that are not in this machine's cache either."""
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
