"""A worker's temporary folder. It is removed with the worker, or by the next worker."""

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
def private_tmpdir() -> Generator[Path]:
    """Sets TMPDIR to a folder of this process, also for its children, while the block runs.

    Folders that killed workers left behind are removed first.
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
