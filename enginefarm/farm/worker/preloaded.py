"""What Python's forkserver imports before it forks runs, and how it is set up; for its process
alone. It starts no thread, opens no connection, and imports neither torch nor CUDA."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from importlib import import_module

from enginefarm.child import COLLECT
from enginefarm.child.lifeline import die_with_parent
from enginefarm.errors import UsageError
from enginefarm.farm.worker.run_process import import_flows
from enginefarm.store import s3
from enginefarm.store.client import Credentials

PID = os.getpid()
PATH = tuple(sys.path)

MODULES = (
    "encodings.idna",
    "anyio._backends._asyncio",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "prefect._internal.metrics",
    "s3transfer.manager",
)

die_with_parent(os.getppid())
os.setpgid(0, 0)  # what a terminal or a supervisor sends to the worker's group is the worker's
gc.set_threshold(*COLLECT)
for _name in MODULES:
    import_module(_name)
import_flows()
with suppress(UsageError):  # opening the store reports settings that cannot be used
    s3.connect("s3://none", credentials=Credentials("none", "none"))
gc.collect()
gc.freeze()
