"""Commands and workers import much of graph/, and pay for none of its libraries (0307)."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"ml_dtypes", "numpy", "onnx", "onnxruntime", "torch"}


@pytest.mark.parametrize(
    "code",
    [
        "import enginefarm.planning.graphs, enginefarm.planning.stages, enginefarm.planning.survey",
        "import enginefarm.graph.verification.verify, enginefarm.graph.samples.data",
        "import enginefarm.building.engine, enginefarm.run.verify",
        "import enginefarm.toolchains.missing_operators",
        "import enginefarm.bench.engine, enginefarm.bench.on_gpu, enginefarm.release.package",
        "from enginefarm.graph.sources import SOURCES, source; [source(kind) for kind in SOURCES]",
        "from enginefarm.graph.precisions import PRECISIONS, precision; "
        "[precision(name) for name in PRECISIONS]",
    ],
)
def test_what_runs_in_a_parent_loads_no_library(code: str) -> None:
    script = f"{code}\nimport sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
