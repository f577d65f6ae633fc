"""The reference's inputs, replayed through a running Triton: its outputs, and its latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.documents.comparing import ComparisonRules, OutputComparison
from enginefarm.documents.manifest import TensorInfo
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import EngineRunError, TritonError
from enginefarm.graph.verification.reference import ReferenceBatch, read_reference
from enginefarm.graph.verification.verify import Comparison, compare
from enginefarm.progress import report
from enginefarm.pulling.triton import RepositoryFile
from enginefarm.release.triton_server import TritonServer
from enginefarm.run.buffers import as_dtype

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


WARM_UP = 10
MOST_BATCHES = 16
"""Held in memory while latencies are taken."""


@dataclass(frozen=True)
class RolloutCandidate:
    """What is to serve.

    model: its name in Triton. tensors, batched: as in its config. files: of the repository, for a
    name and a version. blobs: digest -> local file. reference: npz of inputs and FP32 outputs.
    measured: figures of its graph, which say what FP32 rounding costs.
    """

    model: str
    tensors: tuple[TensorInfo, ...]
    batched: bool
    files: Callable[[str, int], tuple[RepositoryFile, ...]]
    blobs: Mapping[str, Path]
    reference: Path
    budget: Budget
    comparing: ComparisonRules
    measured: tuple[OutputComparison, ...] = ()

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return tuple(one for one in self.tensors if one.role == "input")


@dataclass(frozen=True)
class RolloutLimits:
    """latency_ratio: times the p99 of the version that serves. requests: to each of them."""

    latency_ratio: float
    requests: int = 300
    clock: Callable[[], float] = time.perf_counter


Served = tuple[str, int]
"""A model's name in Triton, and a version of it."""


def replay(
    server: TritonServer,
    candidate: RolloutCandidate,
    model: str,
    version: int | None,
    expect: int = 0,
) -> Comparison:
    """The reference's inputs through the server, against its outputs.

    version None: as clients ask. expect: the version that has to answer then.
    """

    def run(batch: ReferenceBatch) -> Arrays:
        answer = server.infer(model, to_request(candidate, batch.inputs), version)
        if expect and answer.version != expect:
            raise TritonError(
                f"triton: {server.name}: version {answer.version} of {model} answered, "
                f"instead of version {expect}"
            )
        missing = sorted(set(batch.outputs) - set(answer.outputs))
        if missing:
            raise TritonError(
                f"triton: {server.name}: {model} does not return {', '.join(missing)}"
            )
        return _from_response(candidate, answer.outputs)

    return compare(
        read_reference(candidate.reference),
        run,
        candidate.budget,
        candidate.comparing,
        measured=candidate.measured,
    )


def to_request(candidate: RolloutCandidate, inputs: Arrays) -> Arrays:
    """Inputs as Triton takes them: in the model's types, and a scalar as one value in one dim."""
    found: Arrays = {}
    for tensor in candidate.inputs:
        if tensor.name not in inputs:
            raise EngineRunError(f"the reference has no input {tensor.name!r}")
        array = as_dtype(inputs[tensor.name], tensor)
        scalar = len(tensor.shape) == (1 if candidate.batched else 0)
        found[tensor.name] = array.reshape(*array.shape, 1) if scalar else array
    return found


def _from_response(candidate: RolloutCandidate, outputs: Arrays) -> Arrays:
    found = dict(outputs)
    for tensor in candidate.tensors:
        scalar = len(tensor.shape) == (1 if candidate.batched else 0)
        if tensor.role == "output" and scalar and tensor.name in found:
            array = found[tensor.name]
            if array.ndim and array.shape[-1] == 1:
                found[tensor.name] = array.reshape(array.shape[:-1])
    return found


def latency(
    server: TritonServer,
    candidate: RolloutCandidate,
    limits: RolloutLimits,
    old: Served,
    new: Served,
) -> tuple[bool, str]:
    """p99 of lone requests, as this machine sees them, in turns with the version that serves.

    That one takes two turns of three: what it differs from itself is what this cannot tell.
    """
    requests = [*requests_of(candidate)]
    lanes = (old, new, old)
    taken: tuple[list[float], ...] = tuple([] for _ in lanes)
    for turn in range(-WARM_UP, limits.requests):
        for offset in range(len(lanes)):  # nobody always comes first
            lane = (turn + offset) % len(lanes)
            model, which = lanes[lane]
            started = limits.clock()
            server.infer(model, requests[turn % len(requests)], which)
            if turn >= 0:
                taken[lane].append((limits.clock() - started) * 1000)
        report("rollout", max(turn, 0), limits.requests, "triton-latency")
    first, tried, second = (_p99(one) for one in taken)
    both = _p99(taken[0] + taken[2])
    ratio, noise = tried / both, max(first, second) / min(first, second)
    before = old[1]
    words = (
        f"p99 {tried:.3g} ms against {both:.3g} ms of version {before}: {ratio:.3f} times, at most "
        f"{limits.latency_ratio:g}; version {before} against itself {noise:.3f}; "
        f"{limits.requests} requests a lane"
    )
    if noise > limits.latency_ratio:
        return (
            False,
            f"{words}; the noise is too high to decide: try a quieter server or more requests",
        )
    return ratio <= limits.latency_ratio, words


def requests_of(candidate: RolloutCandidate) -> Iterator[Arrays]:
    """Requests from the recipe's data, or from the sizes of its profiles if it names no data."""
    corners: list[Arrays] = []
    count = 0
    for batch in read_reference(candidate.reference):
        if batch.corner:
            if not corners:
                corners.append(to_request(candidate, batch.inputs))
        elif count < MOST_BATCHES:
            count += 1
            yield to_request(candidate, batch.inputs)
    if not count:
        yield from corners


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]
