"""Every input of tests/corpus: the same outcome as when it was written, and at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.fuzz.targets import TARGETS, outcome

CORPUS = Path(__file__).parents[2] / "corpus"
LIMIT_S = 5.0
"""For one input, on a busy machine. The alias bomb took 110 s before it was refused."""


def rows(name: str) -> list[dict[str, str]]:
    lines = (CORPUS / f"{name}.jsonl").read_text("ascii").splitlines()
    return [json.loads(line) for line in lines]


def test_the_corpus_is_there() -> None:
    assert sum(len(rows(name)) for name in TARGETS) >= 500
    for name in TARGETS:
        kinds = {row["outcome"] for row in rows(name)}
        assert kinds - {"accepted"} or name in ("trtexec_log", "index_key"), name


@pytest.mark.parametrize("name", TARGETS)
def test_each_input_comes_to_what_it_came_to(name: str) -> None:
    for number, row in enumerate(rows(name), 1):
        data = bytes.fromhex(row["hex"]) if "hex" in row else row["text"].encode("utf-8")
        started = time.monotonic()
        found = outcome(TARGETS[name], data)
        assert found == row["outcome"], f"{name}.jsonl:{number}: {data[:200]!r}"
        assert time.monotonic() - started < LIMIT_S, f"{name}.jsonl:{number}"


def test_make_fuzz_begins_with_files_that_are_read() -> None:
    """In a process of its own, as `make fuzz` starts it: pytest puts more folders on the path."""
    script = (
        "from tests.unit.fuzz import seeds, targets\n"
        "for name in ('checkpoint', 'checkpoint_index', 'onnx', 'pt2', 'samples', 'signature'):\n"
        "    for data in seeds.of(name):\n"
        "        assert targets.outcome(targets.FUZZED[name], data) == 'accepted', name\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=CORPUS.parents[1], check=True)
