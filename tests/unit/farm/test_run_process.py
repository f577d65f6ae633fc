from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prefect.flows import load_flow_from_entrypoint

from enginefarm.farm.worker.run_process import FLOWS

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


@pytest.mark.parametrize("module", FLOWS)
def test_a_flow_is_found_by_its_name_alone(module: str) -> None:
    """Workers start no code that a deployment names: the name of the flow says where it is."""
    name = module.rpartition(".")[2]
    found = load_flow_from_entrypoint(f"{module}.{name}", use_placeholder_flow=False)
    assert found.name == name.replace("_", "-")
