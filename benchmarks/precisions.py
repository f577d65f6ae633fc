"""How far each precision and calibration method strays from FP32, on the examples.

    python benchmarks/precisions.py [RECIPE …]

Prints SQNR (signal to quantization noise, dB), cosine and top-1 agreement against the FP32
PyTorch reference, and the time that calibration takes. ONNX Runtime's own calibrators are
in the table for comparison: with `--ort` (slow).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.figures import Figure
from enginefarm.documents.recipe import Recipe
from enginefarm.graph.exporting import export, slim
from enginefarm.graph.model.onnx_shapes import infer_types
from enginefarm.graph.precisions import (
    calibration,
    precision,
    prepare,
    qdq,
    targets,
    use,
)
from enginefarm.graph.precisions.finish import finish
from enginefarm.graph.precisions.mixed import cast
from enginefarm.graph.samples import feeds
from enginefarm.graph.samples.data import calibration_batches
from enginefarm.graph.verification import verify
from enginefarm.graph.verification.reference import make_reference
from enginefarm.names import PrecisionName
from enginefarm.recipes import file as recipe_file

PERCENTILES = (99.9, 99.99, 99.999)
EIGHT_BITS: dict[PrecisionName, Any] = {"int8": use.INT8, "fp8": use.FP8}
WIDE: tuple[PrecisionName, ...] = ("fp32", "fp16", "bf16")


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    default = [Path("examples/01_efficientnet_lite0")]
    parser.add_argument("recipes", nargs="*", type=Path, default=default)
    parser.add_argument("--ort", action="store_true", help="ONNX Runtime's calibrators too")
    options = parser.parse_args(arguments)
    print(machine.described("torch", "onnxruntime"))
    figures: list[Figure] = []
    for path in options.recipes:
        with tempfile.TemporaryDirectory(prefix="enginefarm-bench-") as folder:
            figures += one(recipe_file.load(path), Path(folder), with_ort=options.ort)
    return figures


def one(recipe: Recipe, folder: Path, *, with_ort: bool) -> list[Figure]:
    report = export.export_onnx(recipe, folder / "export")
    reference = make_reference(
        recipe, report.model, folder / "reference.npz", outputs=report.outputs
    )
    batch = feeds.sample(recipe)
    corners = [feeds.sized(batch, recipe, dims) for _, dims in feeds.corners(recipe)]
    source = slim.slim_onnx(report.path, folder / "slim", corners).path
    print(f"\n{recipe.name}: {recipe.verification.batches} verification batches")
    print(f"{'precision':22} {'SQNR dB':>8} {'cosine':>9} {'top-1':>7} {'ranges s':>9}")

    figures: list[Figure] = []

    def show(name: str, kind: PrecisionName, onnx: Path, seconds: float | None = None) -> None:
        budget = recipe.budget(kind)
        found = verify.verify_graph(onnx, reference, budget, recipe.verification.comparing)
        if kind in WIDE or name.endswith(_own_method(recipe)):
            aim = budget.min_cosine if kind in recipe.precisions else None
            worst = min(output.cosine for output in found.outputs)
            figures.append(Figure(f"cosine to FP32, {recipe.name}, {name}", worst, at_least=aim))
        for output in found.outputs:
            sqnr = -20 * math.log10(output.relative_l2) if output.relative_l2 else math.inf
            top1 = f"{output.top1_agreement:.3f}" if output.top1_agreement is not None else "-"
            took = f"{seconds:.1f}" if seconds is not None else "-"
            print(f"{name:22} {sqnr:8.1f} {output.cosine:9.5f} {top1:>7} {took:>9}", flush=True)

    for name in WIDE:
        show(name, name, precision(name).convert(source, folder / name, recipe, ()).path)
    if recipe.calibration is None:
        return figures
    for label, ranges, seconds in all_ranges(recipe, source, with_ort=with_ort):
        for kind, storage in EIGHT_BITS.items():
            from onnx import TensorProto

            model = prepare.fp32(source, kind, use.SAME_FROM)
            infer_types(model)
            qdq.insert(model, ranges, storage, with_weights(model))
            made = finish(cast(model, TensorProto.FLOAT16), folder / "eight", "eight bits")
            show(f"{kind} {label}", kind, made.path, seconds)
    return figures


def _own_method(recipe: Recipe) -> str:
    """The recipe's own calibration, as `all_ranges` labels it."""
    chosen = recipe.calibration
    if chosen is None or chosen.method != "percentile":
        return chosen.method if chosen else ""
    return f"percentile {chosen.percentile:g}"


def all_ranges(
    recipe: Recipe, source: Path, *, with_ort: bool
) -> Iterator[tuple[str, dict[str, float], float]]:
    options = recipe.calibration
    assert options is not None
    model = prepare.fp32(source, "int8", use.SAME_FROM)
    infer_types(model)
    names = qdq.activations(model, with_weights(model))
    methods = [("minmax", {}), ("entropy", {})]
    methods += [("percentile", {"percentile": value}) for value in PERCENTILES]
    for method, extra in methods:
        chosen = options.model_copy(update={"method": method, **extra})
        started = time.monotonic()
        seen = calibration.histograms(model, names, calibration_batches(recipe), chosen)
        ranges = calibration.chosen(seen, chosen)
        label = f"{method} {extra['percentile']}" if extra else method
        yield label, ranges, time.monotonic() - started
    if with_ort:
        started = time.monotonic()
        yield "ORT entropy", ort_entropy(source, names, recipe), time.monotonic() - started


def with_weights(model: Any) -> list[targets.Target]:
    return [target for target in qdq.candidates(model) if target.group == targets.WEIGHTS]


def ort_entropy(source: Path, names: tuple[str, ...], recipe: Recipe) -> dict[str, float]:
    """onnxruntime.quantization's entropy calibrator, fed a batch at a time."""
    from onnxruntime.quantization.calibrate import (
        CalibrationDataReader,
        CalibrationMethod,
        create_calibrator,
    )

    class One(CalibrationDataReader):
        def __init__(self, batch: dict[str, Any]) -> None:
            self.left = [batch]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        made = create_calibrator(
            source,
            op_types_to_calibrate=sorted(targets.OUTPUT_AXIS),
            augmented_model_path=f"{folder}/augmented.onnx",
            calibrate_method=CalibrationMethod.Entropy,
            extra_options={"num_bins": 2048, "num_quantized_bins": 128, "symmetric": True},
        )
        for batch in calibration_batches(recipe):
            made.collect_data(One(batch))
        found = made.compute_data().data
    return {name: max(abs(float(v)) for v in found[name].range_value) for name in names}


if __name__ == "__main__":
    main()
