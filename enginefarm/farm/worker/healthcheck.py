"""Exit status 0 when a local service answers: what images and probes call.

    python -m enginefarm.farm.worker.healthcheck [URL]

Without a URL: this machine's worker, by its metrics (ENGINEFARM_METRICS_PORT, 9464).
"""

from __future__ import annotations

import os
import sys
from http.client import HTTPException
from urllib.request import urlopen

TIMEOUT_S = 3


def healthy(url: str) -> bool:
    try:
        with urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - the caller's own URL
            return bool(answer.status == 200)
    except (OSError, HTTPException, ValueError):
        return False


def main(arguments: list[str]) -> int:
    port = os.environ.get("ENGINEFARM_METRICS_PORT", "9464")
    url = arguments[0] if arguments else f"http://127.0.0.1:{port}/healthz"
    return 0 if healthy(url) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
