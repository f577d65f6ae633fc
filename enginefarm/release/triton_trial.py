"""A new version in a running Triton: tried next to the one that serves, then put in its place.

Triton answers a request that names no version with the highest loaded one, so that a version N+1
of the same model would serve before it is tested. It is tried under a name of its own
(`MODEL.next`), which no client asks for, and becomes version N+1 of the model after that.
docs/decisions/0245.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from enginefarm.documents.comparing import absent
from enginefarm.errors import EnginefarmError, EngineRunError, GateError, TritonError
from enginefarm.progress import report
from enginefarm.pulling.triton_places import Place, write_files
from enginefarm.release.triton_replay import (
    RolloutCandidate,
    RolloutLimits,
    latency,
    replay,
    requests_of,
)
from enginefarm.release.triton_server import Tensor, TritonServer
from enginefarm.store.channels import GateResult

NEXT = ".next"
SETTLE_S = 5.0
POLICY = b"version_policy"


class Trial(NamedTuple):
    """before: the version that serves. version: the one that is tried."""

    before: int
    version: int
    gates: tuple[GateResult, ...]

    @property
    def refusals(self) -> tuple[GateResult, ...]:
        return tuple(one for one in self.gates if one.verdict == "refused")


def try_out(
    server: TritonServer, place: Place, candidate: RolloutCandidate, limits: RolloutLimits
) -> Trial:
    """Loads the candidate next to the version that serves, tests it, and unloads it again.

    Raises: TritonError where the server or the repository is not as it has to be.
    """
    model, beside = candidate.model, candidate.model + NEXT
    before = _serving(server, place, model)
    if server.versions(beside):
        raise TritonError(
            f"triton: {server.name} already serves {beside}",
            why="another rollout is under way there, or one was interrupted",
            fix=f"if it was interrupted, unload it: POST /v2/repository/models/{beside}/unload",
        )
    server.require_explicit(beside)
    version = before + 1
    place.remove(beside)
    try:
        write_files(place, candidate.files(beside, version), candidate.blobs)
        gates = tuple(_gates(server, candidate, limits, before, version))
    finally:
        server.unload(beside)
        _wait_until_unloaded(server, beside)
        place.remove(beside)
    return Trial(before, version, gates)


def _serving(server: TritonServer, place: Place, model: str) -> int:
    """The version that answers requests now."""
    served = server.versions(model)
    if not served:
        raise TritonError(
            f"triton: {server.name} serves no version of {model}",
            why="a rollout replaces a version that is served, and compares with it",
            fix="write the first one with `enginefarm triton-repo`, and start the server with "
            f"--model-control-mode=explicit --load-model={model}; --as sets another name",
        )
    if place.read(_config(model)) is None:
        raise TritonError(
            f"triton: {place.name} has no {_config(model)}",
            fix="name the repository that the server reads, as this machine reaches it",
        )
    return served[-1]


def _config(model: str) -> str:
    return f"{model}/config.pbtxt"


def _wait_until_unloaded(server: TritonServer, model: str) -> None:
    """Waits until it is unloaded: no file of a model may be removed before."""
    end = time.monotonic() + SETTLE_S
    while server.is_changing(model) and time.monotonic() < end:
        time.sleep(0.1)


def _gates(
    server: TritonServer,
    candidate: RolloutCandidate,
    limits: RolloutLimits,
    before: int,
    version: int,
) -> Iterator[GateResult]:
    """Runs the steps in order and stops after the first that refuses."""
    beside = candidate.model + NEXT
    steps: dict[str, Callable[[], tuple[bool, str]]] = {
        "triton-load": lambda: _load(server, beside),
        "triton-interface": lambda: _same_interface(server, candidate.model, before, version),
        "triton-outputs": lambda: _outputs(server, candidate, beside, version),
        "triton-latency": lambda: latency(
            server, candidate, limits, (candidate.model, before), (beside, version)
        ),
    }
    for name, step in steps.items():
        report("rollout", 0, None, name)
        try:
            passed, detail = step()
        except (TritonError, EngineRunError) as error:
            passed, detail = False, "; ".join(part for part in (error.what, error.why) if part)
        yield gate(name, server, candidate.model, passed=passed, detail=detail)
        if not passed:
            return


def gate(name: str, server: TritonServer, model: str, *, passed: bool, detail: str) -> GateResult:
    """The result of one step of a rollout."""
    verdict = "passed" if passed else "refused"
    return GateResult(gate=name, verdict=verdict, detail=detail, label=f"{model} on {server.name}")


def _load(server: TritonServer, model: str) -> tuple[bool, str]:
    server.load(model)
    return True, f"loaded as {model}"


def _same_interface(
    server: TritonServer, model: str, before: int, version: int
) -> tuple[bool, str]:
    """Whether clients need no change: the same names and types, and dims that are as wide."""
    old, new = server.model(model, before), server.model(model + NEXT, version)
    for mine, theirs in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
        there = {one.name: one for one in theirs}
        if sorted(there) != sorted(one.name for one in mine):
            return False, f"version {before} has {_names(mine)}, the new one {_names(theirs)}"
        for one in mine:
            if not _fits(one, there[one.name]):
                return (
                    False,
                    f"{_describe(one)} in version {before} is {_describe(there[one.name])} now",
                )
    return True, f"the inputs and outputs of version {before}"


def _fits(old: Tensor, new: Tensor) -> bool:
    return (
        old.datatype == new.datatype
        and len(old.shape) == len(new.shape)
        and all(now in (was, -1) for was, now in zip(old.shape, new.shape, strict=True))
    )


def _names(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(one.name for one in tensors)


def _describe(one: Tensor) -> str:
    return f"{one.name} {one.datatype}{list(one.shape)}"


def _outputs(
    server: TritonServer, candidate: RolloutCandidate, model: str, version: int | None
) -> tuple[bool, str]:
    found = replay(server, candidate, model, version)
    unknown = absent(found.outputs, candidate.budget)
    if unknown:
        return False, f"the budget needs {', '.join(unknown)}, which the reference does not have"
    if found.over_budget:
        return False, "; ".join(found.over_budget)
    return True, f"{found.samples} samples of the reference are within budget"


class Flip:
    """The model's config points at the new version; `back` points it at the one before."""

    def __init__(
        self, server: TritonServer, place: Place, candidate: RolloutCandidate, trial: Trial
    ) -> None:
        self._server, self._place = server, place
        self._candidate, self._trial = candidate, trial
        config = place.read(_config(candidate.model)) or b""
        if POLICY not in config:  # written by hand, or by an earlier version: now it says it
            config += b"\nversion_policy { specific { versions: [ %d ] } }\n" % trial.before
        self._before = config

    def forward(self) -> GateResult:
        """Loads the new version in place of the one before, which serves until that is done, and
        replays the reference through the name that clients use.

        Raises: GateError after going back, or what interrupted it.
        """
        model, version = self._candidate.model, self._trial.version
        try:
            self._place.write(_config(model), self._before)
            files = self._candidate.files(model, version)
            write_files(self._place, files, self._candidate.blobs)
            self._server.load(model)
            found = replay(self._server, self._candidate, model, None, version)
            over = found.over_budget
        except TritonError as error:
            over = ("; ".join(part for part in (error.what, error.why) if part),)
        except BaseException:
            self.back()
            raise
        result = gate(
            "triton-serving",
            self._server,
            model,
            passed=not over,
            detail="; ".join(over) or f"version {version} answers, within budget",
        )
        if over:
            self.back()
            raise GateError(
                f"rollout: version {version} of {model} failed on {self._server.name} once it "
                "served",
                why=result.detail,
                fix=f"version {self._trial.before} serves again",
            )
        return result

    def back(self) -> None:
        """Raises: TritonError where the version before does not serve after it."""
        model, before = self._candidate.model, self._trial.before
        self._place.write(_config(model), self._before)
        try:
            self._server.load(model)
            request = next(requests_of(self._candidate))
            answered = self._server.infer(model, request).version
        except EnginefarmError as error:
            raise _not_restored(self._server, model, before, error.what) from error
        if answered != before:
            raise _not_restored(self._server, model, before, f"version {answered} answers")


def _not_restored(server: TritonServer, model: str, before: int, why: str) -> TritonError:
    return TritonError(
        f"rollout: {model} on {server.name} could not go back to version {before}",
        why=why,
        fix=f"its config.pbtxt names version {before}: load {model} again, or restart the server",
    )
