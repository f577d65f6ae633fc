"""Known vulnerabilities in the versions that constraints.txt pins, asked of PyPI by pip-audit.

    python infra/audit.py [--required]

pip-audit ends with status 0 and "No known vulnerabilities found" when the service knows none
of the packages, as an index without PyPI's JSON API does. So its answer is read here, and
what was not audited is said. Exit status: 0 none known, or NOT AUDITED where the service
does not answer (3 with --required); 1 vulnerable; 2 pip-audit did not run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "constraints.txt"

ACCEPTED: dict[str, str] = {}
"""Vulnerability id -> why it does not reach us. Empty is how it should be."""

TIMEOUT_S = 300


class Unreachable(Exception):
    """The service gave no answer; says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--required", action="store_true", help="status 3 when not audited")
    chosen = parser.parse_args()
    pins = [line for line in LOCK.read_text("utf-8").splitlines() if "==" in line]
    try:
        # Send one request first. If it fails, the other 190 would fail too.
        probe = asked(pins[:1])
        if not audited(probe):
            raise Unreachable(next(row["skip_reason"] for row in probe))
        answer = asked(pins)
    except Unreachable as reason:
        print(f"NOT AUDITED: the vulnerability service does not answer: {reason}")
        return 3 if chosen.required else 0
    for line in said(answer):
        print(line)
    return 1 if vulnerable(answer) else 0


def asked(pins: list[str]) -> list[dict[str, Any]]:
    """pip-audit's rows, one a package: `vulns`, or `skip_reason` for one it could not ask of."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
        pinned.write("\n".join(pins) + "\n")
        pinned.flush()
        options = ["--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off"]
        command = [sys.executable, "-m", "pip_audit", "--requirement", pinned.name, *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Unreachable(f"no answer in {TIMEOUT_S} s") from None
    try:
        return json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if "ConnectionError" in last or "ServiceError" in last or "Timeout" in last:
            raise Unreachable(last) from None
        print(f"pip-audit did not run: {last}", file=sys.stderr)
        sys.exit(2)


def audited(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "skip_reason" not in row]


def vulnerable(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Package and vulnerability, the accepted ones left out."""
    return [
        (row, found)
        for row in audited(rows)
        for found in row["vulns"]
        if not {found["id"], *found["aliases"]} & ACCEPTED.keys()
    ]


def said(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row, found in vulnerable(rows):
        fixed = ", ".join(found["fix_versions"]) or "no version"
        yield f"VULNERABLE: {row['name']} {row['version']}: {found['id']}, fixed in {fixed}"
    for row in rows:
        if "skip_reason" in row:
            yield f"not audited: {row['skip_reason']}"
    yield f"{len(audited(rows))} of {len(rows)} pinned packages audited"


if __name__ == "__main__":
    sys.exit(main())
