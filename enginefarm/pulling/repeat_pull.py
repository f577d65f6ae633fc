"""Answers a pull as the last one was answered, if nothing that decides has changed since.

What a pull selects follows from what is asked, from this host, from enginefarm's own files and from
the documents that the store returns. A note in the cache has the digest of each. If a pull reads
the same documents again and finds every digest, its answer is known, and neither pydantic nor a
model is loaded, which is most of what such a short process does. Otherwise `pulling.pull` answers.
The bytes of the engine are checked as in every pull, and a host with trust keys checks signatures
each time: it has no notes.
docs/decisions/0305-a-pull-that-finds-nothing-new.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import enginefarm
from enginefarm.digest import sha256_bytes
from enginefarm.errors import EnginefarmError
from enginefarm.host.detect import facts
from enginefarm.pulling.place import place
from enginefarm.settings import current
from enginefarm.store import layout, quick_client, untrusted_files
from enginefarm.store.cache import BlobCache
from enginefarm.store.disk import write_atomically

if TYPE_CHECKING:
    from enginefarm.pulling.pull import PulledEngine
    from enginefarm.pulling.select import Selection
    from enginefarm.store.engine_store import EngineStore
    from enginefarm.store.object_info import ObjectInfo

KEYS_TRUSTED = ("ENGINEFARM_TRUST", "ENGINEFARM_TRUST_PEM")
ROOMS = ("", "cli", "documents", "host", "pulling", "store", "tables")
"""Whose files decide what a pull selects and says."""
READERS = 8


class EngineRef(NamedTuple):
    digest: str
    size_bytes: int


class RepeatedPull(NamedTuple):
    """words: the line that describes the engine, and the notes."""

    path: Path
    words: list[str]


class RecordingStore:
    """A store for reading that keeps a digest, or the key, of each answer, by what was asked."""

    def __init__(self, objects: Any) -> None:
        self._objects = objects
        self.read: dict[tuple[str, str], str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def get(self, key: str) -> tuple[bytes, str] | None:
        found = self._objects.get(key)
        self.read["get", key] = sha256_bytes(found[0]) if found else ""
        return found

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = tuple(self._objects.list(prefix))
        self.read["list", prefix] = _digest([one.key for one in found])
        return iter(found)

    def first(self, prefix: str) -> str | None:
        found: str | None = self._objects.first(prefix)
        self.read["first", prefix] = found or ""
        return found

    def ask(self, method: str, name: str) -> str:
        """What is kept of the answer that the store gives now."""
        {"get": self.get, "list": self.list, "first": self.first}[method](name)
        return self.read[method, name]


class Question:
    """What a pull is asked on this host, and what the last one answered."""

    def __init__(self, name: str, gpu: str, precision: str | None, url: str, objects: Any) -> None:
        self.objects = RecordingStore(objects)
        self._url = url
        self._cache = BlobCache()
        asked = (name, gpu, precision, url)
        self._note = self._cache.root / "pulls" / f"{_digest(asked)}.json"
        self._decides = _digest([asked, enginefarm.__version__, facts(gpu), _files()])
        self._read: dict[tuple[str, str], str] = {}

    @property
    def store(self) -> EngineStore:
        """What the whole pull is to read from."""
        from enginefarm.store.engine_store import EngineStore

        return EngineStore(self.objects, self._url)  # type: ignore[arg-type]

    def answer(self, dest: Path | None) -> RepeatedPull | None:
        """None: nothing is noted, or something has changed. Raises: CorruptBlob, DiskFull."""
        try:
            note = json.loads(untrusted_files.read_ours(self._note) or b"{}")
            engine = EngineRef(*note["engine"])
            if note["decides"] != self._decides or not self._cache.has(engine):
                return None
            if not self._unchanged(note["read"]):
                return None
        except (ValueError, KeyError, TypeError, RecursionError, EnginefarmError):
            return None  # if it is an error for pull, too, pull reports it
        manifest = note["manifest"].encode()
        return RepeatedPull(place(self._cache, engine, note["name"], manifest, dest), note["words"])

    def _unchanged(self, read: list[tuple[str, str, str]]) -> bool:
        kinds, names, digests = zip(*read, strict=True)
        with ThreadPoolExecutor(READERS) as pool:
            return tuple(pool.map(self.objects.ask, kinds, names)) == digests

    def selected(self, selection: Selection) -> None:
        """To be called when the whole pull has selected among what it read from `store`."""
        read = dict(self.objects.read)
        listed = sum(name.startswith(layout.MANIFESTS) for _, name in read)
        judged = len(selection.candidates) + len(selection.rejections)
        # botocore's answers are not in `read`; and what was left out is printed each time
        self._read = read if not self.objects.made and listed == judged else {}

    def remember(self, pulled: PulledEngine, name: str, words: list[str]) -> None:
        """Notes what the whole pull answered. name: of the engine's file."""
        if not self._read:
            return
        note = {
            "decides": self._decides,
            "read": [[*asked, digest] for asked, digest in sorted(self._read.items())],
            "engine": [pulled.manifest.engine.digest, pulled.manifest.engine.size_bytes],
            "name": name,
            "manifest": pulled.manifest.canonical_json().decode(),
            "words": words,
        }
        write_atomically(self._note, json.dumps(note).encode())


def question(name: str, gpu: str, precision: str | None) -> Question | None:
    """None where only the whole pull can answer."""
    url = current().store
    if not url.startswith("s3://") or any(os.environ.get(one) for one in KEYS_TRUSTED):
        return None
    with suppress(EnginefarmError):  # pull reports it
        objects = quick_client.connect(url)
        return objects and Question(name, gpu, precision, url, objects)
    return None


def _files() -> list[tuple[str, int, int]]:
    root = Path(enginefarm.__file__).parent
    found = (one for room in ROOMS for one in os.scandir(root / room) if one.is_file())
    return sorted((one.path, one.stat().st_size, one.stat().st_mtime_ns) for one in found)


def _digest(value: Any) -> str:
    return sha256_bytes(json.dumps(value, sort_keys=True, default=sorted).encode())
