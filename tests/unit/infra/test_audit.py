"""What the audit of dependencies makes of pip-audit's answers: nothing unasked passes as clean.

The answers are in the form that pip-audit 2.10 prints; the second is what it printed here,
where the package index has no JSON API.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

CLEAN = {"name": "aiosqlite", "version": "0.22.1", "vulns": []}
UNKNOWN = {
    "name": "aiosqlite",
    "skip_reason": "Dependency not found on PyPI and could not be audited: aiosqlite (0.22.1)",
}
HOLED = {
    "name": "jinja2",
    "version": "3.1.3",
    "vulns": [
        {
            "id": "PYSEC-2024-1",
            "fix_versions": ["3.1.4"],
            "aliases": ["CVE-2024-34064"],
            "description": "",
        }
    ],
}

Audit = Callable[..., int]


@pytest.fixture
def audit(infra: Path, monkeypatch: pytest.MonkeyPatch) -> Audit:
    """Runs it with these answers of pip-audit, one after the other."""

    def run(*answers: Any, required: bool = False, accepted: dict[str, str] | None = None) -> int:
        left = list(answers)

        def answer(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            said = left.pop(0)
            if isinstance(said, str):
                return subprocess.CompletedProcess(command, 1, "", said)
            return subprocess.CompletedProcess(command, 0, json.dumps({"dependencies": said}), "")

        monkeypatch.setattr(subprocess, "run", answer)
        monkeypatch.setattr(sys, "argv", ["audit.py", *(["--required"] if required else [])])
        module = run_path(str(infra / "audit.py"))
        module["ACCEPTED"].update(accepted or {})
        status: int = module["main"]()
        assert not left
        return status

    return run


def test_a_service_that_knows_nothing_is_no_pass(
    audit: Audit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit([UNKNOWN]) == 0
    assert capsys.readouterr().out.startswith("NOT AUDITED: the vulnerability service")
    assert audit([UNKNOWN], required=True) == 3


def test_a_service_out_of_reach_is_no_pass(
    audit: Audit, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "requests.exceptions.ConnectionError: Failed to resolve 'pypi.org'"
    assert audit(words, required=True) == 3
    assert words in capsys.readouterr().out


def test_a_vulnerability_is_named_with_its_fix(
    audit: Audit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit([CLEAN], [CLEAN, HOLED, UNKNOWN]) == 1
    said = capsys.readouterr().out
    assert "VULNERABLE: jinja2 3.1.3: PYSEC-2024-1, fixed in 3.1.4" in said
    assert "not audited: Dependency not found" in said
    assert "2 of 3 pinned packages audited" in said


def test_an_accepted_one_passes_by_any_of_its_names(audit: Audit) -> None:
    assert audit([CLEAN], [HOLED], accepted={"CVE-2024-34064": "no template of ours"}) == 0


def test_pip_audit_that_does_not_run_is_an_error(audit: Audit) -> None:
    with pytest.raises(SystemExit) as ended:
        audit("No module named pip_audit")
    assert ended.value.code == 2
