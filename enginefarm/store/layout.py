"""Every key of the store, in one place.

blobs/sha256/ab/<digest>                          bytes, by content
manifests/<spec_digest>.json                      Manifest of a published engine
index/<recipe>/<gpu>/<precision>/<spec_digest>    empty; one listing shows the published engines
stages/<stage>/<key>.json                         StageRecord: a step that is done
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from enginefarm.documents.manifest import Manifest
    from enginefarm.documents.spec import BlobRef

BLOBS = "blobs/sha256/"
MANIFESTS = "manifests/"
INDEX = "index/"
STAGES = "stages/"


class IndexEntry(NamedTuple):
    """The parts of the key of an index entry."""

    recipe: str
    gpu: str
    precision: str
    spec_digest: str


def blob(ref: BlobRef) -> str:
    return blob_of(ref.digest)


def blob_of(digest: str) -> str:
    return f"{BLOBS}{digest[:2]}/{digest}"


def manifest(spec_digest: str) -> str:
    return f"{MANIFESTS}{spec_digest}.json"


def stage(stage: str, key: str) -> str:
    return f"{STAGES}{stage}/{key}.json"


def index(entry: IndexEntry) -> str:
    return INDEX + "/".join(entry)


def entry_of(manifest: Manifest, recipe: str | None = None) -> IndexEntry:
    """The index entry of a manifest. recipe: another recipe with the same spec."""
    return IndexEntry(
        recipe or manifest.recipe, manifest.gpu, manifest.precision, manifest.spec_digest
    )


def index_prefix(recipe: str | None = None, gpu: str | None = None) -> str:
    """The longest prefix that these filters allow."""
    if recipe is None:
        return INDEX
    return f"{INDEX}{recipe}/" if gpu is None else f"{INDEX}{recipe}/{gpu}/"


def parse_index(key: str) -> IndexEntry | None:
    """The entry with this key; None for a stray object."""
    parts = key.removeprefix(INDEX).split("/")
    return IndexEntry(*parts) if len(parts) == 4 and all(parts) else None
