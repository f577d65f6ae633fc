"""TensorRT, ONNX Runtime and PyTorch, timed in the same way."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EngineRunError, HostError, one_line
from enginefarm.graph.model import ort
from enginefarm.graph.sources import forward, source
from enginefarm.names import RUNTIMES, RuntimeName
from enginefarm.run.engine import Engine
from enginefarm.run.queue import Queue
from enginefarm.run.remote import RemoteContender
from enginefarm.run.running import Contender, Iteration

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays

FILLING = 2
"""Passes of a queue that are not counted: the GPU was idle before them."""


class EngineContender(Contender):
    """An engine on one profile. CUDA events time the parts of passes in a queue of two."""

    def __init__(
        self, name: str, engine: Engine, *, runtime: RuntimeName, profile: int, cuda_graph: bool
    ) -> None:
        self.name = name
        self.runtime = runtime
        self._session = engine.session(profile, cuda_graph=cuda_graph)
        self._queue = Queue(engine.cuda, self._session)
        self._events = [engine.cuda.Event() for _ in range(4)]

    def bind(self, feeds: Mapping[str, Any]) -> None:
        self._session.bind(feeds)

    def turn(self, passes: int) -> list[Iteration]:
        """Lone passes on the host's clock, then as many in a queue and as many copies, by the
        GPU's (decisions 0180 and 0294)."""
        lone = [self.iterate().total for _ in range(passes)]
        queued = self._queue.passes(lambda done: done < passes + FILLING - 1)[FILLING:]
        copies = [self._copies() for _ in range(passes)]
        return [
            Iteration(total, copy_in, compute, copy_out)
            for total, compute, (copy_in, copy_out) in zip(lone, queued, copies, strict=True)
        ]

    def _copies(self) -> tuple[float, float]:
        """A copy in and a copy out, each behind another one of its kind: no gap of the host's, and
        no waking of what copies, lies between two events."""
        session, events = self._session, self._events
        # The copy in is timed last: before it, the GPU would be idle while Python enqueues it.
        for begin, part in ((2, session.copy_out), (0, session.copy_in)):
            part()
            events[begin].record(session.stream)
            part()
            events[begin + 1].record(session.stream)
        session.stream.synchronize()
        return events[1].time_since(events[0]), events[3].time_since(events[2])

    def iterate(self) -> Iteration:
        """One lone pass on the host's clock."""
        session = self._session
        started = time.perf_counter()
        session.enqueue()
        session.stream.synchronize()
        return Iteration((time.perf_counter() - started) * 1000)

    def outputs(self) -> Arrays:
        return self._session.outputs()

    def close(self) -> None:
        self._session.close()


class OrtContender(Contender):
    """A session of ONNX Runtime. Inputs start, and outputs end, on the CPU."""

    def __init__(self, name: str, session: Any, *, runtime: RuntimeName) -> None:
        self.name = name
        self.runtime = runtime
        self._session: Any = session
        self._names = [output.name for output in session.get_outputs()]
        self._feeds: Arrays = {}
        self._found: list[Any] = []

    def bind(self, feeds: Mapping[str, Any]) -> None:
        types = {node.name: node.type for node in self._session.get_inputs()}
        self._feeds = {
            name: array.astype("float16") if types[name] == "tensor(float16)" else array
            for name, array in feeds.items()
        }

    def iterate(self) -> Iteration:
        started = time.perf_counter()
        try:
            self._found = self._session.run(self._names, self._feeds)
        except Exception as error:
            raise EngineRunError(
                f"{self.name}: ONNX Runtime failed to run it", why=one_line(error)
            ) from error
        return Iteration((time.perf_counter() - started) * 1000)

    def outputs(self) -> Arrays:
        return dict(zip(self._names, self._found, strict=True))

    def close(self) -> None:
        self._session, self._found = None, []


def on_provider(
    name: str,
    onnx: Path,
    *,
    runtime: RuntimeName,
    options: Mapping[str, str] | None = None,
) -> OrtContender:
    """A model on the execution provider of that runtime, and on no other.

    Raises: EngineRunError when the provider is not there, or does not take the model.
    """
    provider = RUNTIMES[runtime].provider
    try:
        session = ort.on_provider(onnx, provider, options or {}, log_severity=ort.ERRORS)
    except HostError as error:
        raise EngineRunError(f"{name}: {error.what}", why=error.why) from error
    except Exception as error:
        raise EngineRunError(
            f"{name}: {provider} did not take the model", why=one_line(error)
        ) from error
    return OrtContender(name, session, runtime=runtime)


def on_provider_in_a_process(
    name: str,
    onnx: Path,
    *,
    runtime: RuntimeName,
    options: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> RemoteContender:
    """The same in a fresh process. environment: as RemoteContender's."""
    return RemoteContender(
        name,
        runtime=runtime,
        factory="enginefarm.run.contenders:open_provider",
        arguments=[name, str(onnx), runtime, json.dumps(dict(options or {}))],
        environment=environment,
    )


def open_provider(name: str, onnx: str, runtime: Any, options: str) -> OrtContender:
    """The other side of `on_provider_in_a_process`."""
    return on_provider(name, Path(onnx), runtime=runtime, options=json.loads(options))


def torch_in_a_process(
    name: str, recipe: Recipe, *, outputs: Sequence[str], device: str
) -> RemoteContender:
    """PyTorch eager on a recipe's own model, which is loaded in a fresh process and nowhere else.

    Raises: EngineRunError when it does not load, or torch does not see the device.
    """
    fields = {"name": name, "outputs": [*outputs], "device": device, "root": str(recipe.root)}
    return RemoteContender(
        name,
        runtime="pytorch",
        factory="enginefarm.run.contenders:open_torch",
        arguments=[recipe.model_dump_json(), json.dumps(fields)],
    )


def open_torch(recipe_json: str, fields_json: str) -> TorchContender:
    """The other side of `torch_in_a_process`."""
    recipe, fields = Recipe.model_validate_json(recipe_json), json.loads(fields_json)
    torch: Any = import_module("torch")
    if fields["device"] == "cuda" and not torch.cuda.is_available():
        raise EngineRunError(f"torch {torch.__version__} sees no GPU")
    with tempfile.TemporaryDirectory(prefix="enginefarm-") as folder:
        load = source(recipe.source.kind).load
        model: Any = load(recipe.source, Path(fields["root"]), Path(folder)).model
    module = forward.positional(model, [tensor.name for tensor in recipe.inputs])
    return TorchContender(
        fields["name"], module, outputs=fields["outputs"], device=fields["device"]
    )


class TorchContender(Contender):
    """PyTorch eager, on the CPU or on the GPU (with pinned memory and CUDA events)."""

    runtime: RuntimeName = "pytorch"

    def __init__(self, name: str, module: Any, *, outputs: Sequence[str], device: str) -> None:
        self._torch: Any = import_module("torch")
        self.name = name
        self._module = module.eval().to(device)
        self._outputs = outputs
        self._device = device
        self._inputs: list[Any] = []
        self._found: list[Any] = []
        self._pass: Callable[[], Iteration] = self._on_cpu if device == "cpu" else self._on_gpu

    def bind(self, feeds: Mapping[str, Any]) -> None:
        tensors = [self._torch.from_numpy(array.copy()) for array in feeds.values()]
        self._inputs = [t if self._device == "cpu" else t.pin_memory() for t in tensors]

    def iterate(self) -> Iteration:
        with self._torch.inference_mode():
            return self._pass()

    def outputs(self) -> Arrays:
        return {
            name: value.float().numpy() if value.is_floating_point() else value.numpy()
            for name, value in zip(self._outputs, self._found, strict=True)
        }

    def _on_cpu(self) -> Iteration:
        started = time.perf_counter()
        self._found = forward.tensors(self._module(*self._inputs))
        return Iteration((time.perf_counter() - started) * 1000)

    def _on_gpu(self) -> Iteration:
        cuda = self._torch.cuda
        events = [cuda.Event(enable_timing=True) for _ in range(4)]
        started = time.perf_counter()
        events[0].record()
        inputs = [tensor.to(self._device, non_blocking=True) for tensor in self._inputs]
        events[1].record()
        found = forward.tensors(self._module(*inputs))
        events[2].record()
        self._found = [value.to("cpu", non_blocking=True) for value in found]
        events[3].record()
        events[3].synchronize()
        total = (time.perf_counter() - started) * 1000
        parts = [earlier.elapsed_time(later) for earlier, later in itertools.pairwise(events)]
        return Iteration(total, *parts)
