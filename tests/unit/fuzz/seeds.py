"""Files that hostile ones are made from: the corpus, and valid ones of each kind."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

CORPUS = Path(__file__).parents[2] / "corpus"
EXAMPLES = Path(__file__).parents[3] / "examples"


@cache
def of(name: str) -> list[bytes]:
    made = {"onnx": _onnx, "pt2": _pt2, "recipe": _recipes}.get(name)
    corpus = CORPUS / f"{name}.jsonl"
    kept = corpus.read_text("ascii").splitlines() if corpus.is_file() else []
    rows = [json.loads(line) for line in kept]
    found = [bytes.fromhex(row["hex"]) if "hex" in row else row["text"].encode() for row in rows]
    return (made() if made else []) + found


def _recipes() -> list[bytes]:
    return [file.read_bytes() for file in sorted(EXAMPLES.glob("*/recipe.yaml"))] * 20


def _onnx() -> list[bytes]:
    from tests import tiny_onnx, tiny_recipe

    with tempfile.TemporaryDirectory() as folder:
        return [
            tiny_recipe.classifier().SerializeToString(),
            tiny_onnx.convolutions(Path(folder) / "c.onnx", layers=2, channels=2).read_bytes(),
            (EXAMPLES / "04_onnx" / "model.onnx").read_bytes(),
        ]


def _pt2() -> list[bytes]:
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).repeat(2, 1)[: x.shape[0] * 2 - 1]

    batch = torch.export.Dim("batch", min=2, max=8)
    made = torch.export.export(Model(), (torch.ones(3, 2),), dynamic_shapes=({0: batch},))
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(made, file := Path(folder) / "m.pt2")
        return [file.read_bytes()]
