"""Runs an engine on the GPU: TensorRT or TensorRT-RTX, with pycuda for memory and streams.

    with Engine(plan, toolchain="tensorrt") as engine:
        outputs = engine.run({"image": array})

`Session` has the same run in parts (copy in, compute, copy out), for those who time them.
The GPU's primary context is used, so PyTorch may live in the same process.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from enginefarm.documents.manifest import TensorInfo
from enginefarm.documents.spec import MinOptMax
from enginefarm.errors import DriverTooOld, EnginefarmError, EngineRunError, HostError
from enginefarm.host.plan_header import read_plan_header
from enginefarm.names import TOOLCHAINS, runtime_of
from enginefarm.run.refusals import cause_of, refused
from enginefarm.run.running import Closeable
from enginefarm.run.session import Session
from enginefarm.run.trt import DTYPES, Messages, started

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Array, Arrays


def load_bindings(toolchain: str) -> Any:
    """The Python module that runs this toolchain's plans.

    Raises: HostError when none is installed.
    """
    bindings = runtime_of(toolchain)[1].bindings if toolchain in TOOLCHAINS else ()
    if not bindings:
        raise HostError(
            f"plans of toolchain {toolchain!r} are not TensorRT's own",
            fix="enginefarm/run/artifacts.py lists what runs them",
        )
    unloadable = ""
    for name in bindings:
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            unloadable = unloadable or str(error)
    if found := cause_of(unloadable):
        raise HostError(
            f"the runtime for {toolchain} is installed but cannot be loaded: {found.why}",
            why=unloadable,
            fix=found.fix,
        )
    raise HostError(
        f"no runtime for {toolchain} is installed on this host",
        why=f"none of {', '.join(bindings)} can be imported",
        fix=f"pip install {runtime_of(toolchain)[1].install}, in the engine's own build",
    )


def load_cuda() -> Any:
    """pycuda's driver module, initialized.

    Raises: HostError without a driver, a GPU or pycuda.
    """
    try:
        cuda = import_module("pycuda.driver")
        cuda.init()
    except ImportError as error:
        missing = "libcuda" in str(error)
        raise HostError(
            "this host has no NVIDIA driver" if missing else "pycuda is not installed",
            why=str(error),
            fix="run this on a GPU host" if missing else "pip install 'enginefarm[gpu]'",
        ) from None
    except Exception as error:
        raise HostError("the CUDA driver does not start", why=str(error)) from None
    return cuda


def require_driver(have: int, cuda_major: int) -> None:
    """Raises DriverTooOld when the driver, of CUDA `have` (13010 is 13.1), is older than
    CUDA `cuda_major`.0."""
    if have // 1000 < cuda_major:
        raise DriverTooOld(
            f"the driver supports CUDA {have // 1000}.{have % 1000 // 10}, and this engine's "
            f"runtime needs CUDA {cuda_major}",
            fix="update the driver, or use a toolchain built for the older CUDA",
        )


class Engine(Closeable):
    """A plan, loaded on one GPU. Use it in a `with`."""

    def __init__(
        self,
        plan: Path,
        *,
        toolchain: str,
        plugins: Sequence[Path] = (),
        device: int = 0,
        cuda_major: int | None = None,
    ) -> None:
        """Raises: HostError, DriverTooOld, EngineRunError."""
        self.plan = plan
        self.trt = load_bindings(toolchain)
        self.cuda = load_cuda()
        if cuda_major is not None:
            require_driver(self.cuda.get_driver_version(), cuda_major)
        if runtime_of(toolchain)[1].portable:
            read_plan_header(plan)
        self._stack = ExitStack()
        self.messages = Messages(echo=False)
        try:
            self._open(device, plugins)
        except BaseException:
            self.close()
            raise

    def _open(self, device: int, plugins: Sequence[Path]) -> None:
        found = self.cuda.Device(device)
        self.device_name: str = found.name()
        self._context = found.retain_primary_context()
        self._context.push()
        self._stack.callback(self.cuda.Context.pop)
        self._logger, self._runtime = started(
            self.trt, "the TensorRT runtime", self.trt.Runtime, plugins, self.messages
        )
        self.engine: Any = self._runtime.deserialize_cuda_engine(self.plan.read_bytes())
        if self.engine is None:
            raise self.failure("cannot be loaded")

    def close(self) -> None:
        """Frees the engine, then leaves the GPU's context."""
        # Order matters: contexts and buffers are gone before the engine, the engine before
        # the runtime, and all of them before the CUDA context.
        self.engine = None
        self._runtime = None
        self._stack.close()

    @contextmanager
    def current(self) -> Generator[None]:
        """The GPU's context in the calling thread, for sessions that another one opened."""
        self._context.push()
        try:
            yield
        finally:
            self.cuda.Context.pop()

    @property
    def profiles(self) -> int:
        return int(self.engine.num_optimization_profiles)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(
            self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)
        )

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return tuple(self._tensor(name) for name in self.names)

    def _tensor(self, name: str) -> TensorInfo:
        kind = str(self.engine.get_tensor_dtype(name)).rpartition(".")[2]
        if kind not in DTYPES:
            raise EngineRunError(f"{self.plan.name}: tensor {name!r} is {kind}: no numpy type")
        return TensorInfo(
            name=name,
            dtype=DTYPES[kind],
            shape=tuple(self.engine.get_tensor_shape(name)),
            role=self.role(name),
        )

    def role(self, name: str) -> Literal["input", "output"]:
        mode = self.engine.get_tensor_mode(name)
        return "input" if mode == self.trt.TensorIOMode.INPUT else "output"

    def on_host(self, name: str) -> bool:
        """Shape tensors: their values are read on the CPU."""
        return bool(self.engine.get_tensor_location(name) == self.trt.TensorLocation.HOST)

    def profile_shapes(self, profile: int) -> dict[str, MinOptMax]:
        """min, opt and max of each input that lives on the GPU, in one profile."""
        shapes: dict[str, MinOptMax] = {}
        for tensor in self.tensors:
            if tensor.role == "input" and not self.on_host(tensor.name):
                low, opt, high = self.engine.get_tensor_profile_shape(tensor.name, profile)
                shapes[tensor.name] = MinOptMax(min=tuple(low), opt=tuple(opt), max=tuple(high))
        return shapes

    def session(self, profile: int = 0, *, cuda_graph: bool = False) -> Session:
        """An execution context on one profile, with its own stream and buffers."""
        if not 0 <= profile < self.profiles:
            raise EngineRunError(f"{self.plan.name}: no profile {profile}; it has {self.profiles}")
        return Session(self, profile, cuda_graph)

    def run(self, feeds: Mapping[str, Array], profile: int = 0) -> Arrays:
        """Once: inputs by name -> outputs by name, numpy both.

        Raises: EngineRunError for shapes outside the profile, and for what the GPU reports.
        """
        with self.session(profile) as session:
            session.bind(feeds)
            session.enqueue()
            return session.outputs()

    def layers_json(self) -> str:
        """The engine inspector's description of every layer."""
        inspector = self.engine.create_engine_inspector()
        text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        return str(text)

    def failure(self, what: str) -> EnginefarmError:
        """The error of this engine, with the runtime's own words and what they mean."""
        return refused(self.plan, what, self.device_name, self.messages.cause())
