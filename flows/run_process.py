"""`python -m flows.run_process`: one flow run on a worker. Dies with its worker.

Prefect's own command would live on when its worker is killed: nobody could cancel it, and
the worker's successor would start a second job on the same GPU.
"""

from __future__ import annotations

import os
import runpy

from enginefarm.builder_child import die_with_parent

if __name__ == "__main__":
    die_with_parent(os.getppid())
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
