"""TensorRT 10's implicit INT8: IInt8EntropyCalibrator2, for those who still need it.

TensorRT 11 has none of this. The calibration cache is named by the digest of the data, so
that other data never meets an old cache.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from enginefarm.digest import sha256_file
from enginefarm.errors import CalibrationError
from enginefarm.graph.reference import read_reference
from enginefarm.toolchains import BuildRequest, builder_api


def enable(trt: Any, builder: Any, config: Any, request: BuildRequest) -> Any:
    """Sets INT8 with FP16 as fallback, and the calibrator; gives the calibrator, which the
    caller must keep alive.

    Raises: CalibrationError without calibration data; BuildError.
    """
    if request.calibration is None:
        raise CalibrationError(
            "builder.classic_int8: no calibration data came with the build",
            fix="give the recipe a `calibration`",
        )
    for flag in ("INT8", "FP16"):
        builder_api.set_flag(trt, config, flag, "builder.classic_int8")
    profile = builder.create_optimization_profile()
    for name, shapes in request.spec.profiles[0].shapes.items():
        batch = _shape_of(request.calibration, name) or shapes.opt
        profile.set_shape(name, batch, batch, batch)
    config.set_calibration_profile(profile)
    calibrator = make_calibrator(
        trt, request.calibration, cache_path(request.work_dir, request.calibration)
    )
    config.int8_calibrator = calibrator
    return calibrator


def cache_path(folder: Path, data: Path) -> Path:
    return folder / f"calibration-{sha256_file(data)[:32]}.cache"


def make_calibrator(trt: Any, data: Path, cache: Path) -> Any:
    """data: npz in the layout of reference.py, whose inputs are fed batch by batch."""
    cuda = import_module("pycuda.driver")
    cuda.init()
    context = cuda.Device(0).retain_primary_context()

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self._batches = read_reference(data)
            self._held: dict[str, Any] = {}

        def get_batch_size(self) -> int:
            return 1  # explicit batch: the shapes of the calibration profile count

        def get_batch(self, names: list[str]) -> list[int] | None:
            batch = next(self._batches, None)
            if batch is None:
                return None
            context.push()
            try:
                self._held = {name: cuda.to_device(batch.inputs[name]) for name in names}
            finally:
                cuda.Context.pop()
            return [int(self._held[name]) for name in names]

        def read_calibration_cache(self) -> bytes | None:
            return cache.read_bytes() if cache.is_file() else None

        def write_calibration_cache(self, written: Any) -> None:
            cache.write_bytes(bytes(written))

    return Calibrator()


def _shape_of(data: Path, name: str) -> tuple[int, ...] | None:
    first = next(read_reference(data), None)
    return None if first is None or name not in first.inputs else first.inputs[name].shape
