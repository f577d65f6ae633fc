"""The Triton images that contain a given build of TensorRT, from a table with its source."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

BACKEND = "/opt/tritonserver/backends/tensorrt"


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((files("enginefarm.pulling") / "triton_images.toml").read_text("utf-8"))


def tags(build: str) -> tuple[str, ...]:
    """The tags of `tritonserver` that the source lists with exactly that build, newest first: a
    plan runs only in its own build."""
    return tuple(_table()["tags"].get(build, ()))


def image_words(build: str) -> str:
    """A sentence on the images that contain that build of TensorRT, or that none is known."""
    needed = f"the image has to have TensorRT {build}"
    source = f"{_table()['source']}, {_table()['date']}"
    found = tags(build)
    if not found:
        return (
            f"{needed}. No image with it is known ({source} lists none). NVIDIA's "
            "Frameworks Support Matrix lists the build of each tritonserver:YY.MM-py3 image; "
            "`dpkg -l 'libnvinfer*'` in the image shows it"
        )
    return (
        f"{needed}: tritonserver:{found[0]} has it ({source}"
        + (f"; so have {', '.join(found[1:])}" if found[1:] else "")
        + "). The source does not say whether these images load plans: "
        f"`ls {BACKEND}` in the image shows it. It does not list the YY.MM-py3 images"
    )
