from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect import flow_engine
from prefect.flows import load_flow_from_entrypoint

from enginefarm.farm.worker.run_process import FLOWS, do_not_wait_for_heartbeats

CODE = """
from enginefarm.farm.worker.run_process import import_flows
import_flows()
from prefect.utilities.importtools import load_module
print(load_module("flows.build_model").__file__)
"""


def test_prefect_finds_our_flows_in_a_folder_that_has_flows_of_its_own(tmp_path: Path) -> None:
    """It imports the flow of a run by its name, and looks in the working folder first."""
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


def test_a_flow_that_has_ended_does_not_wait_for_its_heartbeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its place on the worker is free that much earlier: half a second on average."""
    monkeypatch.setattr(flow_engine, "_send_heartbeats", flow_engine._send_heartbeats)
    do_not_wait_for_heartbeats()
    sent: list[object] = []
    engine = SimpleNamespace(
        heartbeat_seconds=30,
        flow_run=None,
        logger=logging.getLogger("engine"),
        _build_heartbeat_event_template=lambda: ({}, []),
        _emit_flow_run_heartbeat=lambda *_: sent.append(1),
    )
    with flow_engine._send_heartbeats(engine):
        time.sleep(0.1)
        ended = time.monotonic()
    assert time.monotonic() - ended < 0.5
    assert sent == [1]
