"""Creates the bucket of ENGINEFARM_STORE if needed: `python -m enginefarm.store.create`.

The farm's own key is not allowed to do that. This command runs once, with a key that is.
"""

from __future__ import annotations

import sys

from enginefarm.errors import EnginefarmError


def main() -> int:
    from enginefarm.store import open_store

    try:
        store = open_store()
        store.objects.create_bucket()
    except EnginefarmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{store.url}: the bucket exists")
    return 0


if __name__ == "__main__":
    sys.exit(main())
