"""In a child process: new weights are set in a plan of TensorRT's by their names."""

from __future__ import annotations

import time
from typing import Any

from enginefarm.errors import BuildError, HostError
from enginefarm.pulling.refit import RefitOrder, RefitResult
from enginefarm.run.engine import load_bindings
from enginefarm.run.trt import Messages, create, started


def by_names(request: str) -> str:
    """A RefitOrder in, RefitResult out, both as JSON.

    Raises: HostError where the runtime cannot refit; BuildError for a plan that does not take these
    weights.
    """
    from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

    order = RefitOrder.model_validate_json(request)
    began = time.monotonic()
    trt = load_bindings(order.toolchain)
    if not hasattr(trt, "Refitter"):
        raise HostError(f"refit: {trt.__name__} is a runtime that cannot refit")
    messages = Messages()
    logger, runtime = started(trt, "TensorRT's runtime", trt.Runtime, order.plugins, messages)
    engine = runtime.deserialize_cuda_engine(order.plan.read_bytes())
    if engine is None:
        raise BuildError("refit: the plan cannot be loaded here", why=messages.cause())
    refitter = create("TensorRT's refitter", trt.Refitter, engine, logger, messages=messages)
    weights: dict[str, Any] = load_file(order.weights)
    unknown = sorted(weights.keys() - set(refitter.get_all_weights()))
    if unknown:
        raise BuildError(
            f"refit: the plan has no weight called {unknown[0]!r}",
            why=f"TensorRT merged {len(unknown)} of the {len(weights)} weights into others",
        )
    for name, values in weights.items():
        if not refitter.set_named_weights(name, trt.Weights(values)):
            raise BuildError(f"refit: the plan refuses weight {name!r}", why=messages.cause())
    missing = tuple(refitter.get_missing_weights())
    if not missing:
        if not refitter.refit_cuda_engine():
            raise BuildError("refit: TensorRT refuses the new weights", why=messages.cause())
        with order.dest.open("wb") as stream:
            stream.write(memoryview(engine.serialize()))
    return RefitResult(seconds=time.monotonic() - began, missing=missing).model_dump_json()
