"""The threat model names, for each threat, a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")


def threats() -> list[list[str]]:
    section = PAGE.partition("## Threats and countermeasures")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_each_threat_has_a_test_or_says_below_that_it_has_none() -> None:
    assert len(threats()) > 20
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for threat, _, tested in threats():
        if tested == "see below":
            continue
        named = re.findall(r"`([^`]+)`", tested)
        assert named, threat
        for name in named:
            if name.startswith("make "):
                assert f"\n{name.removeprefix('make ')}:" in makefile, threat
            else:
                assert (ROOT / name).exists(), f"{threat}: {name}"


def test_the_lock_has_versions_and_no_hashes_as_the_page_says() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in line for line in pins)
    assert not any("--hash" in line for line in pins)
    assert "`constraints.txt` pins versions, not hashes." in PAGE
