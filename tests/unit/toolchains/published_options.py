"""Where published packages spell the options that we use, as the lists in data/ record it.

    pip download --no-deps -d WHEELS nvidia-modelopt==0.47.0 polygraphy-trtexec==0.0.9 \
        trt-cloud==0.6.1 trtutils==0.6.1 onnxruntime-gpu==1.31.1
    python tests/unit/toolchains/published_options.py WHEELS trtexec_options_10.txt

No trtexec is in any wheel, but programs that run it are. The option list's names are looked up
in their sources, and ONNX Runtime's in the binary of its TensorRT provider; what is found in
none is `unconfirmed`.
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

DATA = Path(__file__).parent / "data"
SOURCES = (
    ("nvidia_modelopt", "modelopt/torch/_deploy/_runtime/tensorrt/engine_builder.py"),
    ("nvidia_modelopt", "modelopt/torch/_deploy/_runtime/tensorrt/constants.py"),
    ("nvidia_modelopt", "modelopt/onnx/quantization/autotune/benchmark.py"),
    ("polygraphy_trtexec", "polygraphy_trtexec/backend/runner.py"),
    ("trt_cloud", "trt_cloud/client.py"),
    ("trt_cloud", "trt_cloud/subcommands/refit.py"),
    ("trtutils", "trtutils/trtexec/_build.py"),
)
"""Wheel and file: each builds a trtexec command line."""
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"


def recorded(name: str) -> dict[str, str]:
    """A list in data/: option -> where it was found, or `unconfirmed`."""
    lines = (DATA / name).read_text("utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return {pair[0]: pair[1] for pair in pairs}


def trtexec(option: str, wheels: Path) -> str:
    # polygraphy-trtexec keeps the names in a dict and adds the dashes later.
    spelled = re.compile(rf"{option}(?![\w-])|^\s+'{option.removeprefix('--')}': ?self\.")
    for package, file in SOURCES:
        for wheel in sorted(wheels.glob(f"{package}-*.whl")):
            text = zipfile.ZipFile(wheel).read(file).decode()
            for number, line in enumerate(text.splitlines(), 1):
                if spelled.search(line) and "add_argument" not in line:
                    release = wheel.name.split("-")[1]
                    return f"{package.replace('_', '-')} {release} {file}:{number}"
    return "unconfirmed"


def provider(option: str, wheels: Path) -> str:
    for wheel in sorted(wheels.glob("onnxruntime_gpu-*.whl")):
        binary = zipfile.ZipFile(wheel).read(PROVIDER)
        if re.search(rb"(?<!\w)" + option.encode() + rb"\0", binary):
            return f"onnxruntime-gpu {wheel.name.split('-')[1]} {PROVIDER}"
    return "unconfirmed"


def main(wheels: Path, name: str) -> None:
    find = trtexec if name.startswith("trtexec") else provider
    for option in recorded(name):
        print(f"{option:32} {find(option, wheels)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
