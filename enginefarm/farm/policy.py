"""What every task has in common: when to retry, and whose log lines say what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from enginefarm.errors import EnginefarmError

BACKOFF_S = [2, 8, 30, 60]
"""A store that is killed on a busy machine is back within a minute and a half."""


def only_transient(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """A store or a network that is away is worth another try; a refusal is not."""
    try:
        state.result()
    except EnginefarmError as error:
        return error.transient
    except BaseException:
        return False
    return False


# No timeout_seconds: Prefect cannot end a task in a worker thread, it only warns. What can
# hang has a limit of its own: builds by their wall clock (isolate), the store by its client.
STEP: dict[str, Any] = {
    "retries": len(BACKOFF_S),
    "retry_delay_seconds": BACKOFF_S,
    "retry_condition_fn": only_transient,
    # The store is the one cache: Prefect's cannot see that a blob has gone.
    "cache_policy": NO_CACHE,
    "persist_result": False,
}

NO_RESULTS: dict[str, Any] = {"persist_result": False, "result_storage": Path()}
"""Nothing is written there. A run of a flow without a place for results asks the server for one."""
