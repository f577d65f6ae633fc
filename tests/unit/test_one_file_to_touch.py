"""A GPU, a precision, a toolchain, a runtime and a source are added to a copy of the package by
exactly the files that CONTRIBUTING names, and everything that asks by name knows them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from enginefarm.documents.sources import SOURCES
from enginefarm.graph.precisions import precision
from enginefarm.names import PRECISIONS, RUNTIMES, TOOLCHAINS, loaded
from enginefarm.toolchains import toolchain

ROOT = Path(__file__).parents[2]

NEW_FILES = {
    "precision": (
        "enginefarm/graph/precisions/NAME.py",
        """
class Fake:
    name = "w16"
""",
    ),
    "toolchain": (
        "enginefarm/toolchains/NAME.py",
        """
from enginefarm.documents.spec import ToolchainId

class Fake:
    name, cross = "fake-tool", True

    def identity(self):
        return ToolchainId(name=self.name, build="1", cuda="13", os="linux", arch="x86_64")
""",
    ),
    "runtime": (
        "enginefarm/run/NAME.py",
        """
class Fake:
    def __init__(self, asked):
        self.device_name = f"opened {asked.plan}"
""",
    ),
    "model source": (
        "enginefarm/graph/sources/NAME.py",
        """
class Fake:
    def fingerprint(self, source, root):
        return f"{root}/{source.path}"
""",
    ),
}
"""What is added -> its file, and what is in it."""

ROWS = {
    "precision": (
        "enginefarm/names.py",
        "PRECISIONS: dict[str, PrecisionRow] = {\n",
        '    "w16": PrecisionRow("enginefarm.graph.precisions.fake:Fake", 5, 0.9, 0.3, True),\n',
    ),
    "toolchain": (
        "enginefarm/names.py",
        "TOOLCHAINS: dict[str, ToolchainRow] = {\n",
        '    "fake-tool": ToolchainRow("enginefarm.toolchains.fake:Fake", "fake-runtime"),\n',
    ),
    "runtime": (
        "enginefarm/names.py",
        "RUNTIMES: dict[str, RuntimeRow] = {\n",
        '    "fake-runtime": RuntimeRow("Fake Runtime", ("fake-runtime",),\n'
        '        told_by="ENGINEFARM_FAKE", opened_by="enginefarm.run.fake:Fake"),\n',
    ),
    "model source": (
        "enginefarm/documents/sources.py",
        "\nSource = Annotated[\n",
        "    FakeSource |\n",
    ),
    "GPU": (
        "enginefarm/documents/gpus.toml",
        "\n[t4]\n",
        'names = ["T4"]\ncompute_capability = "7.5"\nmemory_gib = 16\nbandwidth_gb_s = 320\n'
        'precisions = ["fp32"]\n\n[fake1]\nnames = ["FAKE"]\ncompute_capability = "9.9"\n'
        'memory_gib = 1\nbandwidth_gb_s = 1\nprecisions = ["fp16", "w16"]\n\n[t4-of-old]\n',
    ),
}
"""What is added -> the file of its row, the line that the row follows, and the row."""

SOURCE_CLASS = """
class FakeSource(Frozen):
    CODE: ClassVar = "enginefarm.graph.sources.fake:Fake"
    LOADS: ClassVar[ModelForm] = "file"

    kind: Literal["fake"]
    path: FilePath
    vocabulary: FilePath = "words.txt"

"""

ASKED = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import enginefarm
assert Path(enginefarm.__file__).is_relative_to(sys.argv[1]), enginefarm.__file__

from enginefarm.cli.pull import pull
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import RecipeError
from enginefarm.graph.sources import source
from enginefarm.host.detect import detect
from enginefarm.planning import plan
from enginefarm.recipes import file, folder
from enginefarm.release.gates import guard
from enginefarm.names import PRECISION_ORDER
from enginefarm.report.charts import tone
from enginefarm.run.artifacts import open_artifact
from enginefarm.run.running import OpenRequest
from enginefarm.tables.rows import BenchmarkRow
from enginefarm.toolchains import installed, toolchain

wanted = {
    "name": "m", "source": {"kind": "fake", "path": "here"}, "gpus": ["fake1"],
    "inputs": [{"name": "x", "shape": [1]}], "precisions": ["w16"],
}
try:
    Recipe.model_validate(wanted)
except ValueError as error:
    assert "w16 and int8 and fp8 need `calibration`" in str(error), error
else:
    raise AssertionError("a precision that needs calibration data went without")
recipe = Recipe.model_validate({**wanted, "calibration": {"data": {"path": "x.npz"}}})
assert recipe.budget("w16").max_relative_l2 == 0.3
for refused, named in (
    (lambda: file.parse("source: {kind: fake, path: 3}"), "source.path: "),
    (lambda: folder.require_complete(recipe, {"here": Path()}), "source.vocabulary: 'words.txt'"),
):
    try:
        refused()
    except RecipeError as error:
        assert named in str(error), error
    else:
        raise AssertionError(named)
of_w16 = SimpleNamespace(recipe="m", gpu="fake1", precision="w16", spec_digest="0" * 64)
of_w16.spec = SimpleNamespace(label="m/fake1/w16")
assert guard(None, (of_w16,), recipe.regression).kept == (of_w16,)
assert source(recipe.source.kind).fingerprint(recipe.source, recipe.root) == "./here"
offers = [plan.Offer(gpu=None, pool="cpu", toolchains=installed(cross_only=True))]
(target,) = plan.targets(recipe, offers).wanted
assert (target.gpu, target.precision, target.toolchain.name) == ("fake1", "w16", "fake-tool")
assert PRECISION_ORDER[0] == "w16"
(choice,) = [one for one in pull.params if one.name == "precision"]
assert "w16" in choice.type.choices
host = detect("fake1", {"ENGINEFARM_FAKE": "7"})
assert (host.compute_capability, host.runtimes) == ("9.9", {"fake-runtime": "7"})
opened = open_artifact(OpenRequest(plan=Path("a.plan"), toolchain="fake-tool"))
assert opened.device_name == "opened a.plan"
row = BenchmarkRow(
    date="2026-01-01", measured_at="2026-01-01T00:00:00Z", writer="w", recipe="m",
    outcome="built", runtime="fake-runtime", precision="w16", toolchain="fake-tool",
)
assert tone(row) == "r-fake-runtime"
"""


@pytest.fixture(scope="module")
def contributing() -> dict[str, str]:
    """What is added -> the cells of its row that name files."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = re.findall(r"(?m)^\| (?:\[?an?) ([^|\](]+?)(?:\]\([^)]*\))? \|(.*)\|$", text)
    return {what.strip(): cells for what, cells in rows}


def test_what_contributing_names_is_enough(tmp_path: Path, contributing: dict[str, str]) -> None:
    shutil.copytree(
        ROOT / "enginefarm", tmp_path / "enginefarm", ignore=shutil.ignore_patterns("__pycache__")
    )
    for what, (file, text) in NEW_FILES.items():
        assert file in contributing[what]
        (tmp_path / file.replace("NAME", "fake")).write_text(text)
    for what, (file, after, row) in ROWS.items():
        assert file in contributing[what], what
        path = tmp_path / file
        before = path.read_text("utf-8")
        assert before.count(after) == 1, after
        more = SOURCE_CLASS if what == "model source" else ""
        path.write_text(before.replace(after, more + after + row))
    done = subprocess.run(
        [sys.executable, "-c", ASKED, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_row_leads_to_its_code() -> None:
    assert all(precision(name).name == name for name in PRECISIONS)
    assert all(toolchain(name).name == name for name in TOOLCHAINS)
    assert all(row.runtime in RUNTIMES for row in TOOLCHAINS.values())
    codes = [code for row in RUNTIMES.values() for code in (row.opened_by, row.build_by) if code]
    assert all(loaded(code) for code in (*codes, *SOURCES.values()))
    loaders = {name for name, row in RUNTIMES.items() if row.told_by}
    assert loaders == {name for name, row in RUNTIMES.items() if row.opened_by}
