"""Real TensorRT bindings on a machine without TensorRT: the wheel over stub libraries.

The wheels come from the package index, once, into ~/.cache/enginefarm/test-wheels. The stubs
export the symbols that the bindings are linked with, and do nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.programs import program

STUBS: dict[str, tuple[str, ...]] = {
    "libnvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvinfer_plugin": ("initLibNvInferPlugins",),
    "libnvonnxparser": (
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}

LISTING = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
names = {}
for name in dir(trt):
    value = getattr(trt, name)
    names[name] = sorted(dir(value)) if isinstance(value, type) else []
print(json.dumps({"version": trt.__version__, "names": names}))
"""


def fetch(package: str, version: str, cache: Path) -> Path:
    """The wheel of this Python. Fails with pip's words where no index is reachable."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = sorted(cache.glob(f"{package}-{version}-{tag}-*.whl"))
    if not found:
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--dest", str(cache), f"{package}=={version}"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        found = sorted(cache.glob(f"{package}-{version}-{tag}-*.whl"))
        if not found:
            raise RuntimeError(
                f"{package} {version} is not in {cache} and cannot be downloaded; the API "
                f"contract is not tested without it:\n{done.stderr[-800:]}"
            )
    return found[0]


def unpack(wheel: Path, dest: Path) -> Path:
    """The wheel's files, and beside them the stub libraries that its module is linked with."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(dest)
    module = next(dest.glob("tensorrt_bindings/tensorrt.so"))
    needed = subprocess.run(
        [program("readelf", package="binutils"), "-d", str(module)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    stubs = dest / "stubs"
    stubs.mkdir()
    for soname in re.findall(r"\[(libnv\w+\.so\.\d+)\]", needed):
        source = stubs / f"{soname}.c"
        symbols = STUBS[soname.partition(".")[0]]
        source.write_text("".join(f"void* {symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        subprocess.run(
            [
                *(program("gcc", "cc", package="gcc"), "-shared", "-fPIC", f"-Wl,-soname,{soname}"),
                *("-o", str(stubs / soname), str(source)),
            ],
            check=True,
        )
    return stubs


def listing(
    module: str, path: Path | None = None, libraries: Path | None = None
) -> dict[str, set[str]]:
    """Every name of a binding, and the attributes of its classes, read in a process of its
    own: two TensorRTs do not fit into one."""
    environment = {"PATH": "/usr/bin:/bin"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    done = subprocess.run(
        [sys.executable, "-c", LISTING, module],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} cannot be imported: {done.stderr[-800:]}")
    return {name: set(inner) for name, inner in json.loads(done.stdout)["names"].items()}
