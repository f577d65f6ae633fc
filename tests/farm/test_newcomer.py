"""From an empty folder with a model in it to a pulled engine, as a newcomer would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore
from tests.tiny_onnx import convolutions

COMMAND = [sys.executable, "-P", "-c", "from enginefarm.cli import main; main()"]


def test_one_command_builds_a_model_that_has_no_recipe(
    tmp_path: Path, store_environment: EngineStore, s3_server: Server
) -> None:
    convolutions(tmp_path / "net.onnx")
    # Only PyTorch sources need torch: none of the processes can import it here.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    environment = {
        **os.environ,
        "ENGINEFARM_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH")))
        ),
    }

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    built = command("build", "net.onnx", "--gpu", "t4")
    assert built.returncode == 0, built.stderr
    assert "random" in built.stdout
    assert "name: net" in built.stderr  # the inferred recipe is shown
    (manifest,) = store_environment.manifests("net")
    assert manifest.verification.random_data
    pulled = command("pull", "net", "--gpu", "t4", "--dest", "engine")
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "engine").stat().st_size == manifest.engine.size_bytes
