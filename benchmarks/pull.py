"""How fast pull is: against rclone and boto3 from the same server, and from a cold start.

    python benchmarks/pull.py [--rounds 5] [--sizes-mb 10 1000]

Each round runs every contender once, each as a process of its own, in turn, so that a noisy
machine is noisy for all; the table has medians and ratios. The server is a SeaweedFS on this
machine, sharing its cores. Wall and CPU time are of the whole process, start included;
`moving` leaves out the start. enginefarm checks the sha256 of what it wrote; rclone and boto3
do not, so each has a second row with `sha256sum` after it, and rclone a third with the hash that
enginefarm uses, which the aim compares with. On a busy machine compare CPU.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.figures import Figure
from enginefarm.documents.spec import BlobRef
from enginefarm.store import embedded, layout, s3
from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from sample_manifest import make_manifest

CACHED = "pull, engine cached"
WHOLE = "pull --json, engine cached"
"""Like the first pull after a change, it selects: it takes no answer from a note."""
PYTHON = sys.executable
SCRIPTS = Path(sys.executable).parent

PULL = """
import sys, time
from pathlib import Path
from enginefarm.documents.spec import BlobRef
from enginefarm.store import open_store
digest, size, dest = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
store = open_store()
store.objects.head("warm-up")
began = time.perf_counter()
store.fetch_blob(BlobRef(digest=digest, size_bytes=size), dest)
print(time.perf_counter() - began)
"""

BOTO3 = """
import sys, time
import boto3
bucket, key, dest = sys.argv[1:4]
client = boto3.client("s3", region_name="us-east-1")
client.list_objects_v2(Bucket=bucket, Prefix="warm-up")
began = time.perf_counter()
client.download_file(bucket, key, dest)
print(time.perf_counter() - began)
"""


HASHED = """
import hashlib, sys
with open(sys.argv[1], "rb") as stream:
    hashlib.file_digest(stream, "sha256")
"""
CHECKED = "rclone copy + sha256 by hashlib"
"""What does the same work as a pull: coreutils' sha256sum may not use the processor's SHA."""


class Timing:
    """Of one process: wall and CPU seconds of its life, seconds of moving bytes, peak memory."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.peak_mb = 0.0
        while process.poll() is None:
            self.peak_mb = max(self.peak_mb, peak_memory_mb(process.pid))
            time.sleep(0.005)
        self.wall_s = time.perf_counter() - began
        out, err = process.communicate()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if process.returncode != 0:
            raise SystemExit(f"{command[:3]} failed:\n{err}")
        last = out.split()[-1:] or [""]
        try:
            self.moving_s = float(last[0])
        except ValueError:
            self.moving_s = self.wall_s


def peak_memory_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000
    except (OSError, IndexError):
        return 0.0


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes-mb", type=int, nargs="*", default=[10, 1000])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="enginefarm-bench-") as folder:
        root = Path(folder)
        server = embedded.start(root / "store")
        try:
            describe()
            figures: list[Figure] = []
            for size_mb in options.sizes_mb:
                figures += throughput(root, server, size_mb * 1_000_000, options.rounds)
            return figures + cold_start(root, server, max(5, options.rounds))
        finally:
            embedded.stop(root / "store")


def describe() -> None:
    weed = subprocess.run(
        [SCRIPTS / "weed", "version"], capture_output=True, text=True
    ).stdout.split()
    rclone = subprocess.run([SCRIPTS / "rclone", "version"], capture_output=True, text=True)
    print(
        f"{machine.described('boto3')}, {' '.join(rclone.stdout.split()[:2])}, "
        f"SeaweedFS {' '.join(weed[2:4])}"
    )


def store_on(server: Server) -> EngineStore:
    url = f"s3://{embedded.BUCKET}/bench"
    objects = s3.connect(url, endpoint=server.endpoint, credentials=server.credentials)
    return EngineStore(objects, url)


def environment(root: Path, server: Server) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(root),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": server.credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": server.credentials.secret_key,
        "ENGINEFARM_STORE": f"s3://{embedded.BUCKET}/bench",
        "ENGINEFARM_CACHE": str(root / "cache"),
        "RCLONE_CONFIG": str(root / "rclone.conf"),
    }


def upload(root: Path, server: Server, size: int) -> BlobRef:
    source = root / "source.bin"
    with source.open("wb") as stream:
        for start in range(0, size, 1 << 20):
            stream.write(os.urandom(min(1 << 20, size - start)))
    ref = store_on(server).put_blob(source)
    source.unlink()
    return ref


def throughput(root: Path, server: Server, size: int, rounds: int) -> list[Figure]:
    ref = upload(root, server, size)
    key = f"bench/{layout.blob(ref)}"
    (root / "rclone.conf").write_text(
        "[s]\ntype = s3\nprovider = SeaweedFS\nenv_auth = true\nregion = us-east-1\n"
        f"endpoint = {server.endpoint}\n"
    )
    out = root / "out"
    contenders = {
        "enginefarm": [PYTHON, "-c", PULL, ref.digest, str(size), str(out / "file")],
        "rclone copy": [
            str(SCRIPTS / "rclone"),
            "copyto",
            f"s:{embedded.BUCKET}/{key}",
            str(out / "file"),
        ],
        "boto3.download_file": [
            PYTHON,
            "-c",
            BOTO3,
            embedded.BUCKET,
            key,
            str(out / "file"),
        ],
    }
    for name in ("rclone copy", "boto3.download_file"):
        line = f"{shlex.join(contenders[name])} && sha256sum {out / 'file'} >/dev/null"
        contenders[f"{name} + sha256sum"] = ["sh", "-c", line]
    hashed = shlex.join([PYTHON, "-c", HASHED, str(out / "file")])
    contenders[CHECKED] = ["sh", "-c", f"{shlex.join(contenders['rclone copy'])} && {hashed}"]
    timings: dict[str, list[Timing]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, command in contenders.items():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            timings[name].append(Timing(command, environment(root, server)))
    print(f"\n{size / 1e6:,.0f} MB, median of {rounds}")
    print(f"{'':32}{'wall s':>8}{'ratio':>7}{'CPU s':>7}{'moving s':>10}{'MB/s':>7}{'peak MB':>9}")
    walls = {name: statistics.median(t.wall_s for t in found) for name, found in timings.items()}
    ours = walls["enginefarm"]
    for name, found in timings.items():
        wall = walls[name]
        moving = statistics.median(one.moving_s for one in found)
        cpu = statistics.median(one.cpu_s for one in found)
        print(
            f"{name:32}{wall:8.2f}{wall / ours:6.2f}×{cpu:7.2f}{moving:10.2f}"
            f"{size / 1e6 / moving:7.0f}"
            + ("" if "+" in name else f"{max(one.peak_mb for one in found):9.0f}")
        )
    mb = f"{size / 1e6:,.0f} MB"
    peak = max(one.peak_mb for one in timings["enginefarm"])
    return [
        Figure(
            f"throughput of pull over {name}, {mb}",
            walls[name] / ours,
            "×",
            at_least=1 if name == CHECKED else None,
        )
        for name in walls
        if name != "enginefarm"
    ] + [Figure(f"peak memory of pulling {mb}", peak, "MB", at_most=200)]


def cold_start(root: Path, server: Server, rounds: int) -> list[Figure]:
    store = store_on(server)
    engine = os.urandom(10_000_000)
    source = root / "engine"
    source.write_bytes(engine)
    store.put_blob(source)
    store.put_bytes(b"graph")
    for label in ("t4", "a100", "l4"):
        for precision in ("fp16", "int8"):
            store.publish(make_manifest(engine=engine, label=label, precision=precision))
    command = [PYTHON, "-c", "from enginefarm.cli import main; main()"]  # as the script does
    asked = [*command, "pull", "model", "--gpu", "t4"]
    settings = environment(root, server)
    for _ in range(2):  # the second has its answer in a note
        Timing(asked, settings)
    other = settings | {"AWS_DEFAULT_OUTPUT": "json"}  # `quick_client` does not understand it
    contenders = {
        "python -c pass": ([PYTHON, "-c", "pass"], settings),
        "enginefarm --help": ([*command, "--help"], settings),
        "enginefarm pull --help": ([*command, "pull", "--help"], settings),
        CACHED: (asked, settings),
        WHOLE: ([*asked, "--json"], settings),
        "pull, cached, by botocore": (asked, other),
    }
    timings: dict[str, list[Timing]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (one, variables) in contenders.items():
            timings[name].append(Timing(one, variables))
    print(f"\ncold processes, median of {rounds}; six engines in the store")
    aims = {"enginefarm --help": 150, "enginefarm pull --help": 150, CACHED: 150}
    figures: list[Figure] = []
    for name, found in timings.items():
        wall = 1000 * statistics.median(one.wall_s for one in found)
        cpu = 1000 * statistics.median(one.cpu_s for one in found)
        print(f"{name:26}{wall:6.0f} ms wall{cpu:6.0f} ms CPU")
        figures.append(Figure(f"{name}, cold process", wall, "ms", at_most=aims.get(name)))
    cpu = {name: statistics.median(t.cpu_s for t in found) for name, found in timings.items()}
    ratio = cpu[CACHED] / cpu["pull, cached, by botocore"]
    print(f"CPU of {CACHED} over the same by botocore: {ratio:.2f}")
    return [*figures, Figure(f"CPU of {CACHED}, over the same by botocore", ratio, "×")]


if __name__ == "__main__":
    main()
