"""Writes the corpus of hostile inputs: python tests/corpus/make.py

A line of JSON an input: `text` for text formats, `hex` for bytes, and `outcome`, what became of
it when the corpus was written: `accepted`, or the error's kind. Deterministic: the same seed
gives the same files. An input that once broke something is added by hand, under `found`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.unit.fuzz.targets import TARGETS, outcome

HERE = Path(__file__).parent
EACH = 110

RECIPE = (HERE.parents[1] / "examples/01_efficientnet_lite0/recipe.yaml").read_text("utf-8")
LOG = """[11/23/2026-12:00:00] [I] TensorRT version: 10.16.0
&&&& RUNNING TensorRT.trtexec [TensorRT v101600] [b72] # trtexec --onnx=model.onnx
[11/23/2026-12:00:01] [I] Engine built in 12.3456 sec.
[11/23/2026-12:00:01] [I] Peak memory usage: CPU 812 MiB, GPU 345 MiB
[11/23/2026-12:00:02] [I] Throughput: 1234.5 qps
[11/23/2026-12:00:02] [I] Latency: min = 0.7 ms, max = 1.9 ms, percentile(99%) = 1.2 ms
[11/23/2026-12:00:02] [E] Error[4]: While parsing node number 3
&&&& PASSED TensorRT.trtexec [TensorRT v101600] [b72] # trtexec
"""
HOSTILE = (
    *("", "\x00", "\ufeff", "\u202e", "../" * 8, "/etc/passwd", "a" * 5000, "${HOME}", "`id`"),
    *("$(id)", "; rm -rf /", "%s%n", "' OR 1=1 --", "<script>", "\r\n", "null", "~", "-1", "1e400"),
    *(
        "9" * 5000,
        "0x" + "f" * 4000,
        ".nan",
        ".inf",
        "[" * 300,
        "{" * 300,
        "*a",
        "&a [*a]",
        "!!python/name:os.system",
    ),
    *(
        "2026-99-99",
        "t4/../a100",
        "T4",
        "-t4",
        "t4.",
        "ﬀ",
        "𝟏",
        "\ud83d\ude00",
        "01",
        "1_000",
        "true",
    ),
)


def seeds() -> dict[str, bytes]:
    from tests.sample_manifest import make_manifest

    header = bytearray(64)
    header[0:4] = header[28:32] = b"vtrt"
    header[16:24] = (64).to_bytes(8, "little")
    url = "https://host.example/blob#sha256=" + "0" * 64 + "&size=9&name=tiny-t4.plan"
    return {
        "recipe": RECIPE.encode(),
        "manifest": make_manifest().canonical_json(),
        "trtexec_log": LOG.encode(),
        "plan_header": bytes(header),
        "index_key": b"index/tiny/t4/fp16/" + b"0" * 64,
        "url": url.encode(),
        "store_url": b"s3://engines/team/prefix",
    }


def mutate(seed: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(7)
    at = chance.randrange(len(seed) + 1)
    until = min(len(seed), at + chance.randrange(40))
    hostile = chance.choice(HOSTILE).encode("utf-8", "surrogatepass")
    if kind == 0:
        return seed[:at]
    if kind == 1:
        return seed[:at] + hostile + seed[until:]
    if kind == 2:
        return seed[:at] + bytes([chance.randrange(256)]) + seed[at + 1 :]
    if kind == 3:
        return seed[:at] + seed[at:until] * chance.randrange(2, 60) + seed[until:]
    if kind == 4:
        return seed[:at] + seed[until:]
    # A whole value replaced: what follows a colon, an equals sign or a slash.
    marks = [index for index, byte in enumerate(seed) if byte in b":=/"]
    start = chance.choice(marks) + 1 if marks else at
    end = next((i for i in range(start, len(seed)) if seed[i] in b",\n&/}"), len(seed))
    if kind == 5:
        return seed[:start] + b" " + hostile + seed[end:]
    return mutate(mutate(seed, chance), chance)


def bomb() -> str:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    return "\n".join([*lines, "name: *a8"])


FOUND: dict[str, tuple[bytes, ...]] = {
    "recipe": (
        bomb().encode(),  # 110 seconds, once
        b"[1]: 2",  # TypeError: unhashable
        b"name: 0x" + b"f" * 5000,  # ValueError: too many digits to print
        b"&a {name: *a}",
        b"name: &x {<<: *x}",
    ),
    "trtexec_log": (
        b"] Latency: min = 1e999 ms",
        b"Peak memory usage: CPU 1 MiB, GPU " + b"9" * 5000 + b" MiB",
    ),
    "url": (b"https://[x#sha256=" + b"0" * 64 + b"&size=1",),  # ValueError: invalid IPv6 URL
    "store_url": (b"s3://[x/y",),
}


def main() -> None:
    for name, seed in seeds().items():
        chance = random.Random(f"enginefarm {name}")
        inputs = dict.fromkeys(FOUND.get(name, ()))
        while len(inputs) < EACH:
            inputs[mutate(seed, chance)] = None
        with (HERE / f"{name}.jsonl").open("w", encoding="ascii") as stream:
            for data in inputs:
                row = {**written(data), "outcome": outcome(TARGETS[name], data)}
                stream.write(json.dumps(row, ensure_ascii=True) + "\n")


def written(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"hex": data.hex()}


if __name__ == "__main__":
    main()
