"""Version-compatible plans by TensorRT 8.6, the newest full TensorRT on the package index.

    python build_with_trt86.py MODELS PLANS [--once] [NAME …]

Needs nothing but `tensorrt` 8.6, or its bindings over those libraries: no numpy, no enginefarm.
Each plan is built twice, the second time with the timing cache of the first; --once skips that.
"""

import json
import sys
import time
from pathlib import Path

try:
    import tensorrt as trt  # pyright: ignore[reportMissingImports]
except ImportError:  # Python 3.11 has the bindings alone
    import tensorrt_bindings as trt  # pyright: ignore[reportMissingImports]

LOGGER = trt.Logger(trt.Logger.WARNING)
PICTURES = {"images": ((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))}
CONV = [
    {"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))},
    {"x": ((5, 3, 16, 16), (16, 3, 16, 16), (64, 3, 16, 16))},
]
# name -> (model, profiles, flags)
PLANS = {
    "conv": ("conv", CONV, ()),
    "conv-notvc": ("conv", CONV, ("plain",)),
    "conv-withlean": ("conv", CONV, ("keep-lean",)),
    "nonzero": ("nonzero", [{"x": ((1, 4), (8, 4), (64, 4))}], ()),
    "reshape": ("reshape", [{"shape": ((1, 1), (2, 4), (8, 8))}], ()),
    "other": ("other", [PICTURES], ()),
    "efficientnet_lite0-fp32": ("efficientnet_lite0", [PICTURES], ()),
    "efficientnet_lite0-fp16": ("efficientnet_lite0", [PICTURES], ("fp16",)),
    "resnet50-fp32": ("resnet50", [PICTURES], ()),
    "resnet50-fp16": ("resnet50", [PICTURES], ("fp16",)),
}


def build(model, profiles, flags, cache):
    builder = trt.Builder(LOGGER)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse_from_file(model):
        raise SystemExit("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    # cuBLAS and cuDNN of CUDA 12 are not on the machine; TensorRT's own kernels are enough.
    config.set_tactic_sources(
        1 << int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS)
        | 1 << int(trt.TacticSource.JIT_CONVOLUTIONS)
    )
    if "plain" not in flags:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if "keep-lean" not in flags:
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if "fp16" in flags:
        config.set_flag(trt.BuilderFlag.FP16)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    timing = config.create_timing_cache(cache)
    config.set_timing_cache(timing, False)
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, values in shapes.items():
            setter = profile.set_shape
            if inputs[name].is_shape_tensor:
                setter = profile.set_shape_input
            setter(name, *values)
        assert config.add_optimization_profile(profile) >= 0
    started = time.time()
    plan = builder.build_serialized_network(network, config)
    seconds = time.time() - started
    return plan, seconds, bytes(config.get_timing_cache().serialize())


def main(models, plans, names):
    once = "--once" in names
    names = [name for name in names if name != "--once"]
    plans.mkdir(parents=True, exist_ok=True)
    written = plans / "builds.json"
    record = {"tensorrt": trt.__version__, "plans": {}}
    if written.exists():
        record = json.loads(written.read_text())
    for name, (model, profiles, flags) in PLANS.items():
        path = models / f"{model}.onnx"
        if not path.exists() or (names and name not in names):
            continue
        plan, cold, cache = build(str(path), profiles, flags, b"")
        if plan is None:
            print(name, "FAILED", flush=True)
            record["plans"][name] = None
            continue
        (plans / f"{name}.plan").write_bytes(plan)
        figures = {
            "size_bytes": plan.nbytes,
            "cold_s": round(cold, 2),
            "timing_cache_bytes": len(cache),
        }
        if not once:
            figures["warm_s"] = round(build(str(path), profiles, flags, cache)[1], 2)
        record["plans"][name] = figures
        print(name, figures, flush=True)
        written.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
