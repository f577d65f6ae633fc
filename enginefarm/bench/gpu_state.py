"""The GPU's clocks, power, temperature and throttling while something runs, by NVML."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from statistics import median
from typing import Any, Self

from enginefarm.host.detect import visible_gpu
from enginefarm.schema import Frozen

INTERVAL_S = 0.02

THROTTLE_REASONS: dict[int, str] = {
    0x002: "application clocks",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal",
    0x040: "hardware thermal",
    0x080: "power brake",
    0x100: "display clocks",
}
"""NVML's bits (nvmlClocksThrottleReasons*); 0x001, idle, is not throttling."""

LOCKED = 0x002


class GpuState(Frozen):
    """Medians over the samples; None where the GPU does not tell."""

    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    clocks_locked: bool | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    power_state: str = ""
    temperature_c: float | None = None
    throttle_reasons: str = ""


class GpuSampler:
    """Samples the GPU that this process may see, in a thread between `with` and its end; then
    `state()`.

    On a host without NVML it samples nothing and says so by None.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._samples: list[dict[str, float]] = []
        self._limit_w: float | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            nvml = import_module("pynvml")
            nvml.nvmlInit()
            handle = visible_gpu(nvml)
        except Exception:
            return self
        self._limit_w = _ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000)
        self._thread = threading.Thread(target=self._run, args=(nvml, handle), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, nvml: Any, handle: Any) -> None:
        while True:
            self._samples.append(_sample(nvml, handle))
            if self._stop.wait(INTERVAL_S):
                return

    def state(self) -> GpuState:
        return summarize(self._samples, self._limit_w)


def summarize(samples: list[dict[str, float]], limit_w: float | None) -> GpuState:
    def values(name: str) -> list[float]:
        return [sample[name] for sample in samples if name in sample]

    def middle(name: str) -> float | None:
        return median(values(name)) if values(name) else None

    bits = 0
    for value in values("throttle"):
        bits |= int(value)
    states = sorted({int(value) for value in values("pstate")})
    return GpuState(
        sm_clock_mhz=middle("sm"),
        memory_clock_mhz=middle("memory"),
        clocks_locked=bool(bits & LOCKED) if values("throttle") else None,
        power_w=middle("power"),
        power_limit_w=limit_w,
        power_state=",".join(f"P{state}" for state in states),
        temperature_c=max(values("temperature"), default=None),
        throttle_reasons=", ".join(
            name for bit, name in THROTTLE_REASONS.items() if bits & bit and bit != LOCKED
        ),
    )


def _sample(nvml: Any, handle: Any) -> dict[str, float]:
    reasons = getattr(
        nvml,
        "nvmlDeviceGetCurrentClocksEventReasons",
        getattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None),
    )
    questions: dict[str, Callable[[], float]] = {
        "sm": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "pstate": lambda: nvml.nvmlDeviceGetPerformanceState(handle),
    }
    if reasons is not None:
        questions["throttle"] = lambda: reasons(handle)
    answers = {name: _ask(question) for name, question in questions.items()}
    return {name: value for name, value in answers.items() if value is not None}


def _ask(question: Callable[[], float]) -> float | None:
    try:
        return float(question())
    except Exception:  # NVMLError_NotSupported and its kin: this GPU does not tell
        return None
