"""Weights are read without running what a file says."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import recipe

from enginefarm.documents.recipe import LightningSource, Recipe, TorchSource
from enginefarm.errors import SourceError, UnsafeCheckpointError
from enginefarm.graph.sources import source

LIGHTNING = Path(__file__).parent / "data" / "lightning.ckpt"
MODULE = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, channels=4, classes=3):
        super().__init__()
        self.layer = nn.Linear(channels, classes)

    def forward(self, x):
        return self.layer(x)

class Other(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Linear(channels, 7)
"""


class Touch:
    """Unpickled without care, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def load(made: Recipe, tmp_path: Path) -> Any:
    return source(made.source.kind).load(made.source, made.root, tmp_path)


def state(tmp_path: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    made = recipe(tmp_path, source={"kind": "torch", "callable": "code.py:small"})
    module = load(made, tmp_path)
    return {name: tensor + 1 for name, tensor in module.state_dict().items()}


def writes_torch(weights: dict[str, Any], path: Path) -> None:
    torch.save(weights, path)


def writes_nested(weights: dict[str, Any], path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": weights}, path)


def writes_safetensors(weights: dict[str, Any], path: Path) -> None:
    save_file(weights, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.pt", writes_torch),
        ("w.bin", writes_nested),
        ("w.safetensors", writes_safetensors),
    ],
)
def test_a_checkpoint_fills_the_module(tmp_path: Path, name: str, write: Callable) -> None:
    wanted = state(tmp_path)
    write(wanted, tmp_path / name)
    made = recipe(
        tmp_path, source={"kind": "torch", "callable": "code.py:small", "checkpoint": name}
    )
    module = load(made, tmp_path)
    assert not module.training
    assert all(torch.equal(module.state_dict()[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch.save", "plain pickle"])
@pytest.mark.parametrize("kind", ["torch", "lightning"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(
    tmp_path: Path, kind: str, zipped: bool
) -> None:
    proof = tmp_path / "executed"
    path = tmp_path / "evil.ckpt"
    evil = {"state_dict": {"w": Touch(proof)}}
    if zipped:
        torch.save(evil, path)
    else:
        path.write_bytes(pickle.dumps(evil))
    field = "callable" if kind == "torch" else "module"
    made = recipe(
        tmp_path,
        source={"kind": kind, field: "code.py:Small", "checkpoint": "evil.ckpt"},
    )
    with pytest.raises(UnsafeCheckpointError, match=r"source\.checkpoint: evil\.ckpt") as caught:
        load(made, tmp_path)
    assert not proof.exists()
    assert "state_dict" in caught.value.fix
    pickle.loads(pickle.dumps(Touch(proof)))
    assert proof.exists(), "or the test proves nothing"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("size", [0, 5, 200])
def test_a_checkpoint_cut_short_is_one_clear_error(tmp_path: Path, suffix: str, size: int) -> None:
    whole = tmp_path / f"whole{suffix}"
    (writes_torch if suffix == ".pt" else writes_safetensors)(state(tmp_path), whole)
    (tmp_path / f"cut{suffix}").write_bytes(whole.read_bytes()[:size])
    made = recipe(
        tmp_path,
        source={"kind": "torch", "callable": "code.py:small", "checkpoint": f"cut{suffix}"},
    )
    with pytest.raises(SourceError, match=f"source.checkpoint: cut{suffix}") as caught:
        load(made, tmp_path)
    assert not isinstance(caught.value, UnsafeCheckpointError)


def test_weights_of_another_model_name_what_does_not_fit(tmp_path: Path) -> None:
    torch.save(state(tmp_path), tmp_path / "w.pt")
    made = recipe(
        tmp_path,
        source={
            "kind": "torch",
            "callable": "code.py:small",
            "arguments": {"channels": 4},
            "checkpoint": "w.pt",
        },
    )
    with pytest.raises(SourceError, match="do not fit Small") as caught:
        load(made, tmp_path)
    assert "conv.weight" in caught.value.why


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    made = TorchSource(callable="code.py:small", checkpoint="none.pt")
    recipe(tmp_path)
    with pytest.raises(SourceError, match=r"source\.checkpoint: none\.pt: no such file"):
        source("torch").load(made, tmp_path, tmp_path)


def test_a_real_lightning_checkpoint_loads_without_lightning(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(MODULE)
    (tmp_path / "model.ckpt").write_bytes(LIGHTNING.read_bytes())
    made = LightningSource(kind="lightning", module="tiny.py:Tiny", checkpoint="model.ckpt")
    module = source("lightning").load(made, tmp_path, tmp_path)
    # What data/make_lightning.py printed
    wanted = [[0.3861411213874817, -1.1196085214614868]]
    np.testing.assert_allclose(module(torch.ones(1, 6)).detach().numpy(), wanted, rtol=1e-6)


def test_a_lightning_checkpoint_of_another_class(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(MODULE)
    (tmp_path / "model.ckpt").write_bytes(LIGHTNING.read_bytes())
    made = LightningSource(kind="lightning", module="tiny.py:Other", checkpoint="model.ckpt")
    with pytest.raises(SourceError, match="do not fit Other"):
        source("lightning").load(made, tmp_path, tmp_path)
    torch.save({"weights": {}}, tmp_path / "model.ckpt")
    with pytest.raises(SourceError, match="not a Lightning checkpoint"):
        source("lightning").load(made, tmp_path, tmp_path)
