from __future__ import annotations

from enginefarm.bench.gpu_state import GpuSampler, GpuState, summarize


def test_medians_and_every_reason_that_was_seen() -> None:
    samples = [
        {"sm": 1980.0, "power": 500.0, "temperature": 50.0, "pstate": 0.0, "throttle": 0.0},
        {"sm": 1400.0, "power": 700.0, "temperature": 61.0, "pstate": 0.0, "throttle": 4.0},
        {"sm": 1500.0, "power": 690.0, "temperature": 60.0, "pstate": 2.0, "throttle": 0x24},
    ]
    state = summarize(samples, 700.0)
    assert state.sm_clock_mhz == 1500.0
    assert state.temperature_c == 61.0
    assert state.power_state == "P0,P2"
    assert state.throttle_reasons == "software power cap, software thermal"
    assert state.clocks_locked is False
    assert state.power_limit_w == 700.0


def test_clocks_set_by_an_administrator_are_no_throttling() -> None:
    state = summarize([{"throttle": 2.0}], None)
    assert state.clocks_locked is True
    assert state.throttle_reasons == ""


def test_a_host_without_nvml_tells_nothing(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with GpuSampler() as sampler:
        pass
    state = sampler.state()
    assert state == GpuState()
    assert state.sm_clock_mhz is None
    assert state.clocks_locked is None
