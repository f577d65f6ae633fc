"""A build that something happens to in the middle, and what is looked at afterwards."""

from __future__ import annotations

from uuid import UUID

import psutil

from tests import slow_recipe
from tests.farm.farm_fixture import Farm, until

BUILDER = "enginefarm.building.isolate:build_here"
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


def hold(farm: Farm, *labels: str) -> list[psutil.Process]:
    """Freezes the builder of each worker once it is at work: a build as long as a test needs.

    Before it has loaded TensorRT-RTX it has not yet tied its life to its run's. None of them may
    end while another one is waited for, so all are looked at in turns. Resuming them lets the
    builds end.
    """
    held: dict[str, psutil.Process] = {}

    def all_at_work() -> bool:
        for label in labels:
            if label not in held:
                found = [one for one in farm.running(label, BUILDER) if _stopped_at_work(one)]
                held.update((label, one) for one in found)
        return len(held) == len(labels)

    until(all_at_work, f"{', '.join(labels)} build", pause_s=0.1)
    return [held[label] for label in labels]


def _stopped_at_work(builder: psutil.Process) -> bool:
    try:
        builder.suspend()
        if any("libtensorrt_rtx" in mapped.path for mapped in builder.memory_maps()):
            return True
        builder.resume()
    except psutil.NoSuchProcess:
        pass  # one that another test has left, and that ends
    return False


def heard(farm: Farm, run_id: UUID) -> str:
    """What the server knows of a run, and what the two that judge it say, for a failed test."""
    with farm.client() as client:
        wanted = {"resource": {"id": [f"prefect.flow-run.{run_id}"]}}
        events = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 50})
        states = client.read_flow_run_states(run_id)
    lines = [f"{state.timestamp:%T} {state.name}: {state.message}" for state in states]
    lines += [f"{event['occurred']} {event['event']}" for event in events.json()["events"]]
    return "\n".join([*lines, "control:", farm.log("control"), "server:", farm.log("server")])
