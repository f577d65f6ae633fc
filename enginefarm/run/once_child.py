"""In the fresh process of `run_once`: loads one plan, runs it, and leaves its outputs."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from enginefarm.run.artifacts import open_artifact
from enginefarm.run.once import NPY, OnceAnswer, OnceRequest


def run(request_json: str) -> str:
    """An OnceRequest in, an OnceAnswer out, both as JSON. Raises: HostError, EngineRunError."""
    asked = OnceRequest.model_validate_json(request_json)
    feeds = {
        name: np.load(asked.inputs / f"{number}{NPY}", allow_pickle=False)
        for number, name in enumerate(asked.names)
    }
    with (
        open_artifact(
            asked.plan,
            toolchain=asked.toolchain,
            plugins=asked.plugins,
            cuda_major=asked.cuda_major,
        ) as artifact,
        closing(artifact.running(asked.plan.name, profile=asked.profile)) as running,
    ):
        running.bind(feeds)
        running.iterate()
        outputs = running.outputs()
        device = artifact.device_name
    for number, array in enumerate(outputs.values()):
        plain = array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16
        np.save(asked.outputs / f"{number}{NPY}", plain, allow_pickle=False)
    return OnceAnswer(device=device, names=tuple(outputs)).model_dump_json()
