"""The GPU that NVML is asked about is the one that CUDA uses, on a host that has several."""

from __future__ import annotations

import os
import subprocess
import sys

import pynvml
import pytest

pytestmark = pytest.mark.gpu

BOTH = """
import pycuda.driver as cuda, pynvml
from enginefarm.host.detect import visible_gpu
cuda.init()
pynvml.nvmlInit()
print(cuda.Device(0).pci_bus_id().lower())
print(pynvml.nvmlDeviceGetPciInfo(visible_gpu(pynvml)).busId.lower())
"""


def cards() -> int:
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


@pytest.mark.parametrize("index", range(max(cards(), 1)))
def test_both_mean_the_same_card(index: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOTH],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": str(index)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    used, asked = done.stdout.split()
    print(index, used)
    # CUDA writes a domain of four digits, NVML of eight.
    assert asked.endswith(used)
