"""What our harness says of a plan: python our_parts.py PLAN INPUTS BATCH …

INPUTS: an npz of one array by input, as large as the largest batch. Prints a JSON list of
[batch, CUDA graph, total, copy in, compute, copy out], medians in ms, with and without a graph.
Each line is of a process of its own, as trtexec is one and as `enginefarm bench run` has it.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from statistics import median

import numpy as np

from enginefarm.bench.harness import Harness, interleave
from enginefarm.run.artifacts import in_a_process
from enginefarm.run.running import RunRequest

QUICK = Harness(min_iterations=300, min_seconds=0.7)


def main(plan: Path, inputs: Path, batches: list[int]) -> None:
    held = dict(np.load(inputs))
    found = []
    for batch, graph in itertools.product(batches, (False, True)):
        running = in_a_process(
            "ours", RunRequest(plan=plan, toolchain="tensorrt", cuda_graph=graph)
        )
        try:
            running.bind({name: array[:batch] for name, array in held.items()})
            samples, _ = interleave([running], QUICK)
        finally:
            running.close()
        columns = zip(*samples[0].iterations, strict=True)
        found.append([batch, graph, *(median(column) for column in columns)])
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(one) for one in sys.argv[3:]])
