"""PyTorch's translations to ONNX, read once a process.

Each `torch.onnx.export` reads the source of all 500 of them, which takes as long as the rest of the
export of a small model. They do not change while a test process runs.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

REGISTRATION = "torch.onnx._internal.exporter._registration"


def read_once() -> None:
    """From the next export on, in a process that has exported before."""
    module: Any = sys.modules.get(REGISTRATION)
    if module is None or hasattr(module, "read_once"):
        return
    module.read_once = read = cache(module.ONNXRegistry.from_torchlib)

    def copied(_: type[Any], opset_version: int = module._constants.TORCHLIB_OPSET) -> Any:
        """Exports add a recipe's own translations to what they get."""
        made = module.ONNXRegistry()
        made._opset_version = opset_version
        made.functions = {
            name: list(known) for name, known in read(opset_version).functions.items()
        }
        return made

    module.ONNXRegistry.from_torchlib = classmethod(copied)
