"""The wheel, installed alone into an empty environment of each Python that is here."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SUPPORTED = ("3.11", "3.12", "3.13")
FARM_ONLY = ("torch", "prefect", "onnx", "onnxruntime", "pandas", "numpy", "pyarrow", "yaml")

pytestmark = pytest.mark.slow


def pythons() -> dict[str, str]:
    """version -> interpreter: the running one, and those of pyenv."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = {running: sys.executable}
    for version in SUPPORTED:
        versions = Path.home() / ".pyenv" / "versions"
        for candidate in sorted(versions.glob(f"{version}.*/bin/python")):
            found.setdefault(version, str(candidate))
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True
    )
    (made,) = folder.glob("enginefarm-*.whl")
    return made


def test_the_wheel_has_what_the_code_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for wanted in (
        "enginefarm/documents/gpus.toml",
        "flows/build_model.py",
        "enginefarm/farm/logging.yaml",
        "enginefarm/farm/deployed/automations.yaml",
        "tasks/engine.py",
    ):
        assert wanted in names, wanted
    packages = {name.split("/")[0] for name in names}
    assert {name for name in packages if not name.startswith("enginefarm-")} == {
        "enginefarm",
        "flows",
        "tasks",
    }


@pytest.mark.parametrize("version", SUPPORTED)
def test_the_pull_client_alone(wheel: Path, version: str, tmp_path: Path) -> None:
    python = pythons().get(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    inside = tmp_path / "venv" / "bin" / "python"
    # By the pip that is here, and without byte code of modules that nothing imports below: a pip
    # in each environment would take longer than all that is tested.
    install = [sys.executable, "-m", "pip", "--python", inside, "install", "-q", "--no-compile"]
    subprocess.run([*install, "-c", ROOT / "constraints.txt", wheel], check=True)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": os.defpath, "HOME": str(tmp_path)},
        )

    farm = ", ".join(f"find_spec({name!r})" for name in FARM_ONLY)
    clean = f"from importlib.util import find_spec; import enginefarm; assert not any([{farm}])"
    for command in (
        (str(inside), "-c", clean),
        (str(inside.with_name("enginefarm")), "--help"),
        (str(inside.with_name("enginefarm")), "pull", "--help"),
        (str(inside.with_name("enginefarm")), "gpus", "--json"),
    ):
        done = run(*command)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stderr == ""
    # What needs more says so, in one line that says what to install.
    missing = run(str(inside.with_name("enginefarm")), "build", "recipe.yaml")
    assert missing.returncode == 26
    assert "enginefarm[farm]" in missing.stderr
    assert "Traceback" not in missing.stderr
