"""Builds the engine of this folder again, with TensorRT's bindings and numpy alone.

    python reproduce.py                       build, and compare with what the farm built
    python reproduce.py --outputs FILE        compare what trtexec --exportOutput wrote

build.json says what the builder is asked for; the model is model.onnx. Nothing of enginefarm is
imported. Where the plan differs, the exit status is 1.
"""

import argparse
import ctypes
import hashlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NO_RANDOMIZATION = 0x0040000
MODULES = {
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "trtexec": ("tensorrt", "tensorrt_bindings"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--outputs", type=Path, help="JSON that trtexec --exportOutput wrote")
    parser.add_argument("--plan", type=Path, default=Path("engine.plan"), help="written here")
    arguments = parser.parse_args()
    asked = json.loads((HERE / "build.json").read_text("utf-8"))
    if arguments.outputs:
        return compare_outputs(arguments.outputs)
    without_randomization()
    trt = bindings(asked["toolchain"])
    print(f"{trt.__name__} {trt.__version__}; the farm used {asked['build']}")
    plan, layers = build(trt, asked)
    arguments.plan.write_bytes(plan)
    return compare_plan(plan, layers, asked["original"])


def bindings(toolchain: str) -> Any:
    tried: list[str] = []
    for name in MODULES[toolchain]:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            tried.append(f"{name}: {error}")
    sys.exit("TensorRT's bindings cannot be imported: " + "; ".join(tried))


def without_randomization() -> None:
    """Starts over at fixed addresses, as the farm builds: the order of equal things depends on
    them. Where the system does not allow it, the build continues and says so."""
    if os.environ.get("REPRODUCE_FIXED"):
        return
    os.environ["REPRODUCE_FIXED"] = "1"
    libc = ctypes.CDLL(None)
    if hasattr(libc, "personality") and libc.personality(NO_RANDOMIZATION) != -1:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 # this very script
    print("address-space randomization stays on: the plan's bytes may differ for that alone")


def build(trt: Any, asked: dict[str, Any]) -> tuple[bytes, list[str]]:
    """The plan, and the names of the network's layers."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(HERE / "model.onnx")) or network.num_layers == 0:
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        sys.exit("the parser refuses model.onnx: " + "; ".join(errors))
    layers = [network.get_layer(index).name for index in range(network.num_layers)]
    for index in range(network.num_layers if hasattr(trt, "IAttentionInputLayer") else 0):
        layer = network.get_layer(index)
        if str(layer.type).rpartition(".")[2] == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    config = builder.create_builder_config()
    configure(trt, config, asked)
    for shapes in asked["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (low, opt, high) in shapes.items():
            profile.set_shape(name, tuple(low), tuple(opt), tuple(high))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        sys.exit("the builder returned no plan; its messages are above")
    return bytes(memoryview(plan)), layers


def network_flags(trt: Any) -> int:
    """10 is strongly typed by a flag; 11 and TensorRT-RTX always are."""
    by_flag = hasattr(trt.BuilderFlag, "FP16") and not hasattr(trt, "ComputeCapability")
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if by_flag else 0


def configure(trt: Any, config: Any, asked: dict[str, Any]) -> None:
    config.builder_optimization_level = asked["optimization_level"]
    if asked["compute_capabilities"]:
        config.num_compute_capabilities = len(asked["compute_capabilities"])
        for index, name in enumerate(asked["compute_capabilities"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    if asked["hardware_compatibility"]:
        level = getattr(trt.HardwareCompatibilityLevel, asked["hardware_compatibility"])
        config.hardware_compatibility_level = level
    if asked["detailed_profiling"]:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if asked["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, asked["workspace_bytes"])
    if asked["tactic_sources"] is not None:
        names = asked["tactic_sources"]
        config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, one)) for one in names))
    for flag in asked["flags"]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    for flag in asked["cleared_flags"]:
        config.clear_flag(getattr(trt.BuilderFlag, flag))


def compare_plan(plan: bytes, layers: list[str], original: dict[str, Any]) -> int:
    print(f"the plan has {len(plan):,} bytes; the farm's has {original['size_bytes']:,}")
    if original["network_layers"] is None:
        print("not compared: the farm stored no list of the network's layers")
    elif layers == original["network_layers"]:
        print(f"the network's {len(layers)} layers are the same")
    else:
        print(f"the network DIFFERS: {len(layers)} layers, {len(original['network_layers'])} there")
    print(f"not compared here: {original['not_compared']}")
    if hashlib.sha256(plan).hexdigest() == original["sha256"]:
        print("SAME: every byte of the plan is the farm's")
        return 0
    print("DIFFERENT: the bytes of the plan are not the farm's")
    return 1


def compare_outputs(path: Path) -> int:
    """What trtexec gave for the first batch of the reference, against FP32."""
    import numpy as np

    found = {one["name"]: one["values"] for one in json.loads(path.read_text("utf-8"))}
    status = 0
    with np.load(HERE / "reference.npz") as reference:
        for key in reference.files:
            if not key.startswith("0000/output/"):
                continue
            name, want = key.removeprefix("0000/output/"), reference[key].astype(np.float64).ravel()
            have = np.asarray(found.get(name, ()), np.float64).ravel()
            if have.shape != want.shape:
                print(f"{name}: {have.size} values, {want.size} in the reference")
                status = 1
                continue
            error = float(np.linalg.norm(have - want) / max(float(np.linalg.norm(want)), 1e-30))
            print(f"{name}: relative L2 {error:.3g}, max abs {np.abs(have - want).max():.3g}")
    return status


if __name__ == "__main__":
    sys.exit(main())
