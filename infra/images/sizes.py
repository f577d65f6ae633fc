"""The size of each image by layer, on paper: what is installed here, summed as the images copy it.

    python infra/images/sizes.py

No engine and no registry is asked. A base, and a package that is not installed in this
environment, are named and not counted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
IMAGES = {
    "control": ("CONTROL_BASE", ("farm", "torch")),
    "worker …-trt10": ("TENSORRT_10_BASE", ("farm", "torch", "gpu")),
    "worker …-trt11": ("TENSORRT_11_BASE", ("farm", "torch", "gpu")),
}
LARGEST = 10


def main() -> None:
    versions = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / "infra/versions.env").read_text(), re.M))
    ours = sum(
        mib(path)
        for folder in ("enginefarm", "flows", "tasks", "deployments")
        for path in (ROOT / folder).rglob("*")
        if path.suffix != ".pyc"
    )
    print("| image | layer | MiB |\n|---|---|---:|")
    for image, (base, extras) in IMAGES.items():
        packages, missing = closure("enginefarm", extras)
        total = sum(packages.values())
        print(f"| {image} | base {versions[base]} | not counted |")
        print(f"| {image} | /opt/enginefarm: {len(packages)} locked packages | {total:,.0f} |")
        for name in sorted(missing):
            print(f"| {image} | … and {name}, which is not installed here | not counted |")
        print(f"| {image} | /opt/enginefarm: our own code | {ours:.1f} |")
        print(f"| {image} | entrypoint | {mib(ROOT / 'infra/images/entrypoint.sh'):.3f} |")
    packages, _ = closure("enginefarm", ("farm", "torch"))
    largest = sorted(packages.items(), key=lambda item: -item[1])[:LARGEST]
    print(f"\nThe largest of the {len(packages)} (Python {sys.version.split()[0]}):\n")
    print("| package | MiB |\n|---|---:|")
    for name, mebibytes in largest:
        print(f"| {name} {distribution(name).version} | {mebibytes:,.0f} |")


def closure(package: str, extras: tuple[str, ...]) -> tuple[dict[str, float], set[str]]:
    """Everything that the package with these extras brings, by size; and what is missing."""
    sizes: dict[str, float] = {}
    missing: set[str] = set()
    waiting = list(wanted(distribution(package), extras))
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while waiting:
        name, more = waiting.pop()
        if (name, more) in seen:
            continue
        seen.add((name, more))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        sizes[name] = size(name)
        waiting += wanted(found, more)
    return sizes, missing


@cache
def size(package: str) -> float:
    """Of its files, in MiB. The images have most packages in common."""
    return sum(mib(Path(str(file.locate()))) for file in distribution(package).files or ())


def wanted(found: Distribution, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for line in found.requires or ():
        asked = Requirement(line)
        marks = [{"extra": extra} for extra in ("", *extras)]
        if asked.marker is None or any(asked.marker.evaluate(mark) for mark in marks):
            yield re.sub(r"[-_.]+", "-", asked.name).lower(), tuple(sorted(asked.extras))


def mib(path: Path) -> float:
    return path.stat().st_size / (1 << 20) if path.is_file() else 0


if __name__ == "__main__":
    main()
