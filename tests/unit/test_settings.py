"""What the environment decides, and what it must not be."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import psutil
import pytest

from enginefarm import settings
from enginefarm.errors import UsageError
from enginefarm.farm.parameters import roots
from enginefarm.farm.server import address
from enginefarm.store import embedded
from enginefarm.store.cache import BlobCache


def test_a_builders_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENGINEFARM_BUILD_MEMORY_MIB", "ENGINEFARM_BUILD_TIMEOUT_S"):
        monkeypatch.delenv(name, raising=False)
    found = settings.build_limits()
    assert found.timeout_s == 3600
    assert 1 << 28 < found.memory_bytes < psutil.virtual_memory().total
    monkeypatch.setenv("ENGINEFARM_BUILD_MEMORY_MIB", "2048")
    monkeypatch.setenv("ENGINEFARM_BUILD_TIMEOUT_S", "1.5")
    assert settings.build_limits() == settings.BuildLimits(timeout_s=1.5, memory_bytes=2 << 30)


@pytest.mark.parametrize("version", [0, 1])
def test_the_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Of both versions of control groups; files that it only caches count as free."""
    _, limit, used, files = settings.CONTAINERS[version]
    monkeypatch.setattr(settings, "CONTAINERS", ((str(tmp_path), limit, used, files),))
    whole = psutil.virtual_memory().total
    assert settings.memory_bytes() == whole
    (tmp_path / limit).write_text("1000000\n")
    (tmp_path / used).write_text("900000\n")
    cached = "".join(
        f"{name} {size}\n" for name, size in zip(files, (300_000, 50_000), strict=True)
    )
    (tmp_path / "memory.stat").write_text(f"cache 5\n{cached}")
    assert settings.memory_bytes() == 1_000_000
    assert settings.memory_left_bytes() == 450_000
    (tmp_path / limit).write_text("max\n")
    assert settings.memory_bytes() == whole
    assert 0 < settings.memory_left_bytes() < whole


@pytest.mark.parametrize("value", ["0", "-1", "an hour"])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ENGINEFARM_BUILD_TIMEOUT_S", value)
    with pytest.raises(UsageError, match=f"ENGINEFARM_BUILD_TIMEOUT_S: '{value}'"):
        settings.build_limits()


def test_a_container_whose_user_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found: 10001")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.delenv("ENGINEFARM_USER", raising=False)
    assert settings.user() == f"uid {os.getuid()}"
    monkeypatch.setenv("ENGINEFARM_USER", "ci")
    assert settings.user() == "ci"


def test_a_tilde_is_the_home_folder_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a unit file or a container, where no shell has expanded it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ENGINEFARM_HOME", "ENGINEFARM_CACHE", "ENGINEFARM_RECIPE_ROOTS"):
        monkeypatch.setenv(name, "~/here")
    here = tmp_path / "here"
    found = settings.current()
    assert (found.home, found.cache, found.recipe_roots) == (here, here, (here.resolve(),))
    assert embedded.default_home() == here / "store"
    assert BlobCache().root == here
    assert address.folder() == here / "farm"
    assert roots() == (here.resolve(),)


@pytest.mark.parametrize(
    ("text", "folders", "in_store"),
    [
        (None, None, False),
        ("", None, False),
        ("@store", (), True),
        ("/a:@store", (Path("/a"),), True),
        ("/a::/b", (Path("/a"), Path("/b")), False),
    ],
)
def test_recipe_roots_are_parsed_in_one_place(
    monkeypatch: pytest.MonkeyPatch, text: str | None, folders: object, in_store: bool
) -> None:
    monkeypatch.delenv("ENGINEFARM_RECIPE_ROOTS", raising=False)
    if text is not None:
        monkeypatch.setenv("ENGINEFARM_RECIPE_ROOTS", text)
    found = settings.current()
    assert (found.recipe_roots, found.recipes_in_store) == (folders, in_store)
    assert roots() == ((Path.cwd(),) if folders is None else folders)


def test_folders_are_the_same_in_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's runs start in folders of their own."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    named = {"ENGINEFARM_RECIPE_ROOTS": f"recipes{os.pathsep}@store", "ENGINEFARM_HOME": "state"}
    here = settings.Settings.read(named)
    again = here.absolute(named)
    assert "ENGINEFARM_CACHE" not in again
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert settings.Settings.read(again) == here
    assert here.recipe_roots == (tmp_path.resolve() / "recipes",)


def test_every_place_reads_the_same_gpu_and_the_same_downloads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU's lock, a worker's name and NVML; what a recipe's code downloads, and the cache."""
    for text, shown in ((" 1, 0", "1"), ("GPU-3a,GPU-4b", "GPU-3a"), ("", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert settings.shown_gpu() == shown
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert settings.shown_gpu() == "0"
    found = settings.Settings.read({"XDG_CACHE_HOME": "caches"})
    assert found.downloads == Path("caches").absolute() == found.cache.parent
