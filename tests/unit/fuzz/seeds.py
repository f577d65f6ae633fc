"""Files that hostile ones are made from: the corpus, and valid ones of each kind."""

from __future__ import annotations

import io
import json
import tempfile
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enginefarm.documents.manifest import Manifest
from enginefarm.store import signing

CORPUS = Path(__file__).parents[2] / "corpus"
EXAMPLES = Path(__file__).parents[3] / "examples"


@cache
def of(name: str) -> list[bytes]:
    made = MADE.get(name)
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


@cache
def shards() -> dict[str, bytes]:
    """The shard of a checkpoint, by its name."""
    import torch
    from safetensors.torch import save

    return {"m-00001-of-00001.safetensors": save({"w": torch.ones(2), "b": torch.ones(3, 2)})}


def _index() -> list[bytes]:
    (name,) = shards()
    index = {"metadata": {"total_size": 32}, "weight_map": {"w": name, "b": name}}
    return [json.dumps(index).encode()]


def _checkpoints() -> list[bytes]:
    import torch

    found = [*shards().values()]
    weights = {"state_dict": {"w": torch.ones(2), "b": torch.ones(3, 2)}, "epoch": 3}
    for new in (True, False):
        torch.save(weights, made := io.BytesIO(), _use_new_zipfile_serialization=new)
        found.append(made.getvalue())
    return found


def _samples() -> list[bytes]:
    import numpy as np

    array = np.ones((5, 2), np.float32)
    found: list[bytes] = []
    for order in (array, np.asfortranarray(array)):
        np.save(made := io.BytesIO(), order)
        found.append(made.getvalue())
    for save in (np.savez, np.savez_compressed):
        save(made := io.BytesIO(), x=array)
        found.append(made.getvalue())
    return found


@cache
def manifest() -> Manifest:
    from tests import sample_manifest

    return Manifest.read(sample_manifest.make_manifest().canonical_json())


@cache
def _signer() -> signing.Signer:
    key = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    return signing.Signer(signing.key_id(key.public_key()), key.sign, key.public_key())


def trust() -> signing.Trust:
    return signing.Trust({_signer().keyid: _signer().public})


def _signatures() -> list[bytes]:
    return [_signer().attest(manifest()).canonical_json()]


MADE = {
    "onnx": _onnx,
    "pt2": _pt2,
    "recipe": _recipes,
    "checkpoint": _checkpoints,
    "checkpoint_index": _index,
    "samples": _samples,
    "signature": _signatures,
}
