from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_onnx

from enginefarm.building.lottery import draw
from enginefarm.documents.spec import ToolchainId
from enginefarm.errors import AccuracyError, BuildError
from enginefarm.toolchains import BuildOutput, BuildRequest

TOOLCHAIN = ToolchainId(name="tensorrt", build="11.4.0.106", cuda="13", os="linux", arch="x86_64")


def request(tmp_path: Path, attempts: int) -> BuildRequest:
    return BuildRequest(
        spec=tiny_onnx.spec(TOOLCHAIN, attempts=attempts),
        onnx=tmp_path / "model.onnx",
        work_dir=tmp_path / "w",
        timing_cache=tmp_path / "timing.cache",
    )


def builder(seen: list[BuildRequest]) -> Callable[[BuildRequest], BuildOutput]:
    def build(asked: BuildRequest) -> BuildOutput:
        seen.append(asked)
        plan = asked.work_dir / "engine.plan"
        plan.write_text(str(len(seen) - 1))
        return BuildOutput(plan=plan, tensors=(), seconds=1)

    return build


def ticket(plan: Path) -> int:
    return int(plan.read_text())


def test_the_fastest_accurate_one_is_kept_and_the_spread_recorded(tmp_path: Path) -> None:
    seen: list[BuildRequest] = []
    times = [3.0, 1.0, 2.0, 2.5]
    output, result = draw(
        request(tmp_path, 4),
        build=builder(seen),
        refuse=lambda plan: "cosine 0.2" if ticket(plan) == 1 else "",
        latency_ms=lambda plan: times[ticket(plan)],
    )
    assert ticket(output.plan) == result.kept == 2
    assert (result.best_ms, result.worst_ms) == (2.0, 3.0)
    assert result.attempts[1].refused == "cosine 0.2"
    assert output.details["lottery"]["kept"] == 2  # type: ignore[index, call-overload]
    assert all(asked.timing_cache is None for asked in seen)  # it would make them alike
    assert len({asked.work_dir for asked in seen}) == 4


def test_an_attempt_that_does_not_build_is_no_winner(tmp_path: Path) -> None:
    good = builder([])

    def build(asked: BuildRequest) -> BuildOutput:
        if asked.work_dir.name == "attempt-0":
            raise BuildError("no luck")
        return good(asked)

    _, result = draw(
        request(tmp_path, 2), build=build, refuse=lambda _: "", latency_ms=lambda _: 1.0
    )
    assert result.kept == 1
    assert result.attempts[0].refused == "no luck"


def test_when_none_is_accurate_nothing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match="none of 2 attempts") as caught:
        draw(
            request(tmp_path, 2),
            build=builder([]),
            refuse=lambda _: "scores: NaN",
            latency_ms=lambda _: 1.0,
        )
    assert "NaN" in caught.value.why


def test_when_none_builds_the_first_cause_is_told(tmp_path: Path) -> None:
    def build(asked: BuildRequest) -> BuildOutput:
        raise BuildError(f"{asked.work_dir.name} failed")

    with pytest.raises(BuildError, match="attempt-0 failed"):
        draw(request(tmp_path, 3), build=build, refuse=lambda _: "", latency_ms=lambda _: 1.0)
