"""A build that something happens to in the middle, and what is looked at afterwards."""

from __future__ import annotations

from uuid import UUID

import psutil

from tests import slow_recipe
from tests.farm.farm_fixture import Farm, until

BUILDER = "enginefarm.building.isolate:build_here"
RUN = "enginefarm.farm.worker.run_process"
RECOGNIZED_S = 120


def start(farm: Farm, name: str, *gpus: str) -> UUID:
    slow_recipe.write(farm.recipes / name, name=name, gpus=list(gpus))
    return farm.submit("build-model/build-model", recipe=name)


def whole(farm: Farm, recipe: str, *labels: str) -> None:
    """Exactly these engines are published, each with its bytes; nothing else is left over."""
    manifests = list(farm.store.manifests(recipe))
    assert sorted(one.spec.label for one in manifests) == sorted(labels)
    for manifest in manifests:
        assert farm.store.has_blob(manifest.engine)
        assert farm.store.has_blob(manifest.graph.model)


def freeze(builder: psutil.Process) -> None:
    """Stops a builder that is at work: before that it has not yet tied its life to its run's.

    It stands still while it is looked at, so that it cannot end in between on a busy machine.
    """

    def at_work() -> bool:
        builder.suspend()
        if any("libtensorrt_rtx" in mapped.path for mapped in builder.memory_maps()):
            return True
        builder.resume()
        return False

    until(at_work, "the builder has loaded TensorRT-RTX", 30, pause_s=0.02)


def heard(farm: Farm, run_id: UUID) -> str:
    """What the server knows of a run, and what the two that judge it say, for a failed test."""
    with farm.client() as client:
        wanted = {"resource": {"id": [f"prefect.flow-run.{run_id}"]}}
        events = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 50})
        states = client.read_flow_run_states(run_id)
    lines = [f"{state.timestamp:%T} {state.name}: {state.message}" for state in states]
    lines += [f"{event['occurred']} {event['event']}" for event in events.json()["events"]]
    return "\n".join([*lines, "control:", farm.log("control"), "server:", farm.log("server")])
