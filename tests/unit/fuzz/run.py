"""Fuzzing by hypothesis for a while: `make fuzz MINUTES=10`.

    python -m tests.unit.fuzz.run [--minutes 10] [TARGET ...]
    python -m tests.unit.fuzz.run --only TARGET --seconds 60 --seed 1 --note FILE

Inputs are the corpus and valid files, changed: bytes, JSON values, members of archives. Each
target has a process of its own for its share of the time; an input that ends it by a signal or
keeps it for longer than LIMIT_S is kept. An error of ours is fine, anything else is a finding.
The readers of ONNX run in child processes of the farm: there a signal is one error, and it is
counted apart.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.unit.fuzz import seeds
from tests.unit.fuzz.targets import FUZZED, NATIVE, outcome

LIMIT_S = 20
BATCH = 200
FOUND, HUNG = 3, 4


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", default=[])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--note", type=Path)
    asked = parser.parse_args()
    if asked.only:
        return fuzz(asked.only, asked.seconds, asked.seed, asked.note)
    names = asked.targets or [*FUZZED]
    share_s = asked.minutes * 60 / len(names)
    rows = [_watched(name, share_s) for name in names]
    print("\n| target | inputs | tracebacks | hangs | signals (in a child: one error) |")
    print("|---|---:|---:|---:|---:|")
    for name, count in zip(names, rows, strict=True):
        cells = (count["inputs"], count["tracebacks"], count["hangs"], count["signals"])
        print(f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    bad = sum(
        count["tracebacks"] + count["hangs"] + (0 if name in NATIVE else count["signals"])
        for name, count in zip(names, rows, strict=True)
    )
    print(f"\n{sum(count['inputs'] for count in rows):,} inputs, {bad} findings")
    return 1 if bad else 0


def _watched(name: str, seconds: float) -> Counter[str]:
    """Processes of one target, one after another, until its time is over."""
    count: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    number = 0
    while (left := ends - time.monotonic()) > 1:
        number += 1
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder) / "input"
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "tests.unit.fuzz.run", "--only", name),
                    *("--seconds", str(left), "--seed", str(number), "--note", str(note)),
                ],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            lines = done.stdout.splitlines()
            count["inputs"] += int(lines[-1]) if lines and lines[-1].isdigit() else 0
            kind = {0: "", FOUND: "tracebacks", HUNG: "hangs", 1: "hangs"}.get(
                done.returncode, "signals"
            )
            if kind:
                count[kind] += 1
                kept = Path(f"fuzz-{name}-{kind}-{number}")
                kept.write_bytes(note.read_bytes() if note.is_file() else b"")
                print(f"{name}: {kind}, status {done.returncode}: {kept}", flush=True)
    return count


def fuzz(name: str, seconds: float, number: int, note: Path) -> int:
    """In the process of one target. Prints the number of inputs as its last line."""
    ends = time.monotonic() + seconds
    tried = 0

    def once(data: bytes) -> None:
        nonlocal tried
        if time.monotonic() > ends:
            return
        note.write_bytes(data)
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        try:
            outcome(FUZZED[name], data)
        finally:
            faulthandler.cancel_dump_traceback_later()
        tried += 1

    round_ = 0
    try:
        while time.monotonic() < ends:
            round_ += 1
            run = given(changed(name))(once)
            run = settings(
                max_examples=BATCH,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=[*HealthCheck],
            )(run)
            seed(number * 1_000_003 + round_)(run)()
    except BaseException:
        traceback.print_exc()
        return FOUND
    finally:
        print(tried, flush=True)
    return 0


def changed(name: str) -> st.SearchStrategy[bytes]:
    """A file of this kind with a few changes, or bytes of any kind."""
    valid = seeds.of(name)
    return st.one_of(
        st.binary(max_size=300),
        st.builds(_changed, st.sampled_from(valid), st.integers(0, 1 << 62)),
        st.builds(_changed, st.sampled_from(valid), st.integers(0, 1 << 62)),
    )


def _changed(data: bytes, number: int) -> bytes:
    chance = random.Random(number)
    if data[:2] == b"PK":
        return _archive(data, chance)
    if data[:1] == b"{" and chance.random() < 0.7:
        return _document(data, chance)
    return _bytes(data, chance)


def _bytes(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(len(made) + 1)
        how = chance.randrange(5)
        if how == 0 and made:
            made[at % len(made)] = chance.choice((0, 0x7F, 0xFF, chance.randrange(256)))
        elif how == 1:
            made[at:at] = chance.choice(PIECES)
        elif how == 2:
            del made[at : at + chance.choice((1, 3, 50))]
        elif how == 3:
            made[at:at] = made[at : at + chance.choice((2, 20, 400))]
        else:
            del made[at:]
    return bytes(made)


PIECES = (b"\xff\xff\xff\xff\x0f", b"\x80" * 10, b"9" * 40, b"-1", b"NaN", b"\x00", b"\xed\xa0\x80")
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1 << 63, 1 << 70, 1e308, float("nan"), float("inf"), "", "../../x"),
    *("\ud800", "\x1b[2J", "a" * 5000, [], {}, [[]], {"expr_str": "1/0"}, "9**9**9", "torch.os"),
)


def _document(data: bytes, chance: random.Random) -> bytes:
    try:
        document = json.loads(data)
    except ValueError:
        return _bytes(data, chance)
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = [*_places(document)]
        if not places:
            break
        holder, key = chance.choice(places)
        if chance.random() < 0.2:
            del holder[key]
        else:
            holder[key] = chance.choice(VALUES)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else []
    keys = list(range(len(value))) if isinstance(value, list) else keys
    found = [(value, key) for key in keys]
    return found + [place for key in keys for place in _places(value[key])]


def _archive(data: bytes, chance: random.Random) -> bytes:
    """One member changed and the archive made anew: changed bytes alone would fail its sums."""
    if chance.random() < 0.2:
        return _bytes(data, chance)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice([*members])
    members[name] = _changed(members[name], chance.randrange(1 << 62))
    if chance.random() < 0.1:
        members[f"{name}{chance.choice(('x', '.json', '/..', '0'))}"] = members[name]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return made.getvalue()


if __name__ == "__main__":
    sys.exit(main())
