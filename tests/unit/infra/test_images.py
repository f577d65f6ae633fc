"""The images: linted, non-root, pinned in one place."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

DOCKERFILES = ("control.Dockerfile", "worker.Dockerfile")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(infra: Path, tool: Callable[[str], str], name: str) -> None:
    done = subprocess.run(
        [tool("hadolint"), str(infra / "images" / name)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", DOCKERFILES)
def test_runs_as_nobody_special_and_says_whether_it_is_well(infra: Path, name: str) -> None:
    text = (infra / "images" / name).read_text("utf-8")
    final = text[text.rindex("\nFROM ") :]
    assert "USER 10001:10001" in final
    assert "HEALTHCHECK" in final
    assert "-c constraints.txt" in text or "-c locked.txt" in text, "not from the lock file"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_no_version_is_pinned_outside_versions_env(infra: Path, name: str) -> None:
    text = (infra / "images" / name).read_text("utf-8")
    for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert base.startswith("${"), f"{base}: name it in versions.env"


def test_every_base_has_a_tag_and_every_tensorrt_a_full_version(versions: dict[str, str]) -> None:
    for name, value in versions.items():
        if name.endswith(("_BASE", "_BUILD", "_IMAGE")):
            assert re.search(r":[\w.-]+$", value), f"{name}: {value} has no tag"
            assert not value.endswith(":latest"), name
        if re.fullmatch(r"TENSORRT_\d+", name):
            assert value.startswith(name.removeprefix("TENSORRT_") + ".")
            assert value.count(".") == 3, f"{name}: {value} is not one exact build"


def test_the_version_is_the_packages(infra: Path, versions: dict[str, str]) -> None:
    project = tomllib.loads((infra.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert versions["ENGINEFARM_VERSION"] == project["version"]


def test_build_script_builds_every_image(infra: Path, versions: dict[str, str], tmp_path: Path):
    """With a `docker` that writes its arguments down: what would be built, and on what."""
    calls = tmp_path / "calls"
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n', "utf-8")
    docker.chmod(0o755)
    subprocess.run(
        [str(infra / "images" / "build.sh")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "REGISTRY": "registry.example/team"},
        check=True,
    )
    control, ten, eleven = calls.read_text("utf-8").splitlines()
    assert f"CONTROL_BASE={versions['CONTROL_BASE']}" in control
    for line, major in ((ten, "10"), (eleven, "11")):
        assert f"TENSORRT={versions[f'TENSORRT_{major}']}" in line
        assert f"WORKER_BASE={versions[f'TENSORRT_{major}_BASE']}" in line
        tag = f"registry.example/team/enginefarm/worker:{versions['ENGINEFARM_VERSION']}-trt{major}"
        assert tag in line


def test_build_script_names_what_it_does_not_know(infra: Path) -> None:
    done = subprocess.run(
        [str(infra / "images" / "build.sh"), "trt9"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "trt9" in done.stderr


def test_the_lock_layer_installs_what_the_package_asks_for(infra: Path) -> None:
    project = tomllib.loads((infra.parent / "pyproject.toml").read_text("utf-8"))["project"]
    done = subprocess.run(
        ["python3", "infra/images/requirements.py", "farm", "torch"],
        cwd=infra.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["farm"], *extras["torch"]]
    assert done.stdout.splitlines() == wanted


def test_the_sizes_on_paper_count_every_package_of_the_control_image(infra: Path) -> None:
    done = subprocess.run(
        [sys.executable, infra / "images" / "sizes.py"], capture_output=True, text=True, check=True
    )
    control = [line for line in done.stdout.splitlines() if line.startswith("| control |")]
    assert not any("not installed here" in line for line in control)
    (packages,) = [line for line in control if "locked packages" in line]
    assert int(packages.split("|")[-2].strip().replace(",", "")) > 1000
    assert done.stdout.count("base nvcr.io/") == 2


class TestEntrypoint:
    def run(self, infra: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(infra / "images" / "entrypoint.sh"), "env"],
            env={"PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
        )

    def test_a_secret_comes_from_its_file(self, infra: Path, tmp_path: Path) -> None:
        secret = tmp_path / "auth"
        secret.write_text("farm:p$(id)`id`'\"x", "utf-8")
        done = self.run(infra, {"PREFECT_API_AUTH_STRING_FILE": str(secret)})
        assert done.returncode == 0
        assert "PREFECT_API_AUTH_STRING=farm:p$(id)`id`'\"x" in done.stdout.splitlines()

    def test_a_missing_file_stops_the_container(self, infra: Path, tmp_path: Path) -> None:
        done = self.run(infra, {"PREFECT_API_AUTH_STRING_FILE": str(tmp_path / "none")})
        assert done.returncode == 78
        assert "PREFECT_API_AUTH_STRING_FILE" in done.stderr
