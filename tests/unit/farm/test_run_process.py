from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
from enginefarm.farm.worker.run_process import import_flows
import_flows()
from prefect.utilities.importtools import load_module
print(load_module("flows.build_model").__file__)
"""


def test_prefect_finds_our_flows_in_a_folder_that_has_flows_of_its_own(tmp_path: Path) -> None:
    """It loads a crashed run's flow in the worker, which would end with what it finds."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("raise SystemExit('flows: yours')")
    done = subprocess.run(
        [sys.executable, "-P", "-c", CODE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith(str(tmp_path))
