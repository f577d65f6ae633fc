"""The machine that builds, as manifests record it."""

from __future__ import annotations

import platform
import re
from functools import cache
from importlib import metadata

from enginefarm.documents.manifest import Environment
from enginefarm.host.runtimes import version_of
from enginefarm.names import RUNTIMES

RECORDED_PACKAGES = (
    *("enginefarm", "onnx", "onnxslim"),
    *dict.fromkeys(name for row in RUNTIMES.values() for name in row.packages),
)


@cache
def environment() -> Environment:
    versions = {name: version_of(name) for name in RECORDED_PACKAGES}
    packages = {name: version for name, version in versions.items() if version}
    licenses = {name: license_of(name) for name in packages}
    return Environment(
        host=platform.node(),
        os=platform.system().lower(),
        arch=platform.machine(),
        python=platform.python_version(),
        packages=packages,
        licenses={name: found for name, found in licenses.items() if found},
    )


def license_of(distribution: str) -> str:
    """What an installed package declares, as an SPDX expression; empty if it declares nothing.

    Words that are not an expression become a LicenseRef, SPDX's form for other licenses.
    """
    declared = metadata.metadata(distribution)
    if "License-Expression" in declared:
        return declared["License-Expression"]
    kinds = [line for line in declared.get_all("Classifier", []) if line.startswith("License ::")]
    words = declared["License"][:60] if "License" in declared else ""
    words = kinds[-1].rpartition(":: ")[2] if kinds else words
    kept = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-")
    return f"LicenseRef-{kept}" if kept else ""
