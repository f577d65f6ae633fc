"""Whether an S3 server does what the farm needs: `python -m enginefarm.store.check`.

Works on objects of its own under `check/`, and deletes them.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from enginefarm.errors import EnginefarmError, StoreConflict
from enginefarm.store.s3 import ObjectStore

RACERS = 8


def checks(objects: ObjectStore) -> list[tuple[str, bool]]:
    """(what is needed, whether the server does it), in order."""
    prefix = f"check/{secrets.token_hex(6)}/"
    key = f"{prefix}one"
    try:
        etag = objects.put(key, b"first", Metadata={"sha256": "x"})
        found = objects.head(key)
        again = objects.put_if_absent(key, b"second")
        with ThreadPoolExecutor(RACERS) as pool:
            race = f"{prefix}race"
            tries = [
                pool.submit(objects.put_if_absent, race, str(number).encode())
                for number in range(RACERS)
            ]
            winners = [one for one in tries if one.result() is not None]
        swapped = objects.put_if_match(key, b"third", etag)
        body, _ = objects.range(key, 1, 3)
        return [
            ("metadata is kept", found is not None and found.metadata == {"sha256": "x"}),
            ("If-None-Match: * refuses to overwrite", again is None),
            (f"one winner of {RACERS} who create at once", len(winners) == 1),
            ("If-Match replaces the current version", swapped != etag),
            ("If-Match refuses an old version", _conflicts(objects, key, etag)),
            ("a range is a range", body.read() == b"hi"),
            ("a listing shows what was just written", len(list(objects.list(prefix))) == 2),
        ]
    finally:
        for info in list(objects.list(prefix)):
            objects.delete(info.key)


def _conflicts(objects: ObjectStore, key: str, etag: str) -> bool:
    try:
        objects.put_if_match(key, b"fourth", etag)
    except StoreConflict:
        return True
    return False


def main(show: Callable[[str], None] = print) -> int:
    from enginefarm.store import open_store

    try:
        results = checks(open_store().objects)
    except EnginefarmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for needed, done in results:
        show(f"{'yes' if done else 'NO '}  {needed}")
    return 0 if all(done for _, done in results) else 1


if __name__ == "__main__":
    sys.exit(main())
