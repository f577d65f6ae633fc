"""A worker's temporary folder: what it and its runs leave there goes with it, or with the next."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "enginefarm-worker-"


@contextmanager
def own_folder() -> Generator[Path]:
    """Makes TMPDIR a folder of this process, for its children too, while the block runs.

    A worker that is killed cannot clear up: the folders of those that are gone are removed here.
    """
    before, base = os.environ.get("TMPDIR"), Path(tempfile.gettempdir())
    for left in base.glob(f"{PREFIX}*"):
        if _owner_is_gone(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _owner_is_gone(folder: Path) -> bool:
    named = re.match(rf"{PREFIX}(\d+)-", folder.name)
    try:
        if named is None or folder.lstat().st_uid != os.getuid():
            return False
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
