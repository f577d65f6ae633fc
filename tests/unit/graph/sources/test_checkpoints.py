"""Weights are read without running what a file says."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import recipe

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.sources import LightningSource, TorchSource
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
    return source(made.source.kind).load(made.source, made.root, tmp_path).model


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
    with pytest.raises(SourceError, match=r"source\.checkpoint: none\.pt: the file does not exist"):
        source("torch").load(made, tmp_path, tmp_path)


def test_a_real_lightning_checkpoint_loads_without_lightning(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(MODULE)
    (tmp_path / "model.ckpt").write_bytes(LIGHTNING.read_bytes())
    made = LightningSource(kind="lightning", module="tiny.py:Tiny", checkpoint="model.ckpt")
    module = source("lightning").load(made, tmp_path, tmp_path).model
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


def filled(tmp_path: Path, write: Callable, name: str = "w.pt", **more: Any) -> Any:
    """The module, filled from what `write` made of its own state plus one."""
    wanted = state(tmp_path)
    write(wanted, tmp_path / name)
    source_ = {"kind": "torch", "callable": "code.py:small", "checkpoint": name, **more}
    module = load(recipe(tmp_path, source=source_), tmp_path)
    assert all(torch.equal(module.state_dict()[key], wanted[key]) for key in wanted)
    return module


def under(**parts: Any) -> Callable:
    """Writes the weights wherever a part says WEIGHTS, and PLUS ONE for other weights."""

    def write(weights: dict[str, Any], path: Path) -> None:
        def put(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: put(item) for key, item in value.items()}
            other = {name: tensor + 1 for name, tensor in weights.items()}
            made = {"WEIGHTS": weights, "PLUS ONE": other}
            return made.get(value, value) if isinstance(value, str) else value

        torch.save(put(parts), path)

    return write


@pytest.mark.parametrize(
    "write",
    [
        under(epoch=3, model_state_dict="WEIGHTS", optimizer={"state": {}, "lr": 0.1}),
        under(params_ema="WEIGHTS"),
        under(model="WEIGHTS", ema="PLUS ONE"),
        under(network={"generator": "WEIGHTS"}, step=torch.tensor(3)),
        under(model={"state_dict": "WEIGHTS", "epoch": 1}, best=np.float64(0.5)),
        under(state_dict="WEIGHTS", best=np.float32(0.5), history=np.arange(3.0)),
        lambda w, p: torch.save({f"module.{k}": v for k, v in w.items()}, p),
        lambda w, p: torch.save({f"_orig_mod.module.{k}": v for k, v in w.items()}, p),
        lambda w, p: torch.save({k.replace(".", "._orig_mod.", 1): v for k, v in w.items()}, p),
        lambda w, p: torch.save(w, p, _use_new_zipfile_serialization=False),
        lambda w, p: save_file(w, p),
    ],
)
def test_weights_are_found_where_training_scripts_put_them(tmp_path: Path, write: Callable) -> None:
    filled(tmp_path, write)


def test_a_choice_between_models_is_the_users(tmp_path: Path) -> None:
    write = under(params="PLUS ONE", params_ema="WEIGHTS", iteration=3)
    with pytest.raises(SourceError, match="weights of several models") as caught:
        filled(tmp_path, write)
    assert "params, params_ema" in caught.value.why
    assert "source.checkpoint_key" in caught.value.fix
    filled(tmp_path, write, checkpoint_key="params_ema")
    with pytest.raises(SourceError, match="holds no weights under 'ema'"):
        filled(tmp_path, write, checkpoint_key="ema")


def test_what_holds_no_weights_lists_its_keys(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a state dict") as caught:
        filled(tmp_path, under(epoch=3, optimizer={"lr": 0.1}))
    assert "epoch (int), optimizer (dict)" in caught.value.why


TIED = (
    MODULE
    + """
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
"""
)


def test_shared_tensors_may_be_in_the_file_once_and_must_agree(tmp_path: Path) -> None:
    recipe(tmp_path)
    (tmp_path / "tied.py").write_text(TIED)
    made = TorchSource(callable="tied.py:Tied", checkpoint="w.safetensors")
    weight = torch.ones(5, 4)
    save_file({"embedding.weight": weight}, tmp_path / "w.safetensors")
    module = source("torch").load(made, tmp_path, tmp_path).model
    assert torch.equal(module.head.weight, weight)
    both = {"embedding.weight": weight, "head.weight": weight + 1}
    save_file(both, tmp_path / "w.safetensors")
    with pytest.raises(SourceError, match="do not fit Tied") as caught:
        source("torch").load(made, tmp_path, tmp_path)
    assert "differ in the file" in caught.value.why


def test_quantized_weights_are_not_copied_into_a_float_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="do not fit Small") as caught:
        filled(tmp_path, lambda w, p: torch.save({k: v.to(torch.int8) for k, v in w.items()}, p))
    assert "torch.int8 in the file and torch.float32 in the model" in caught.value.why


def packed(path: Path) -> None:
    """As a bomb: torch inflates a member before it looks at its size."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def directory_moved(path: Path) -> None:
    """The archive's list of members is not where its end says."""
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    path.write_bytes(data[:at] + b"NaN" + data[at:])


def encrypted(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(signature, at + 4)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (
            lambda w, p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            "Git LFS pointer",
        ),
        (lambda w, p: p.write_text("../blobs/0a1b2c"), "the text of a link to"),
        (lambda w, p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2000)), "this is an HDF5 file"),
        (lambda w, p: p.write_bytes(b"GGUF" + bytes(2000)), "this is a GGUF file"),
        (lambda w, p: p.write_bytes(gzip.compress(bytes(9999))), "this is a gzip archive"),
        (lambda w, p: p.write_text("<html>" + "no such page " * 200), "this is a web page"),
        (lambda w, p: p.write_text('{"lr": 0.1}'), "this is a JSON file"),
        (
            lambda w, p: p.write_text('{"weight_map": {"a": "1.bin", "b": "2.bin", "c": "2.bin"}}'),
            "1.bin, 2.bin do not exist",
        ),
        (lambda w, p: p.write_text('{"weight_map": {"a": "../1.bin"}}'), "has '../1.bin' for a"),
        (lambda w, p: p.write_text(f'{{"weight_map": {{"a": "{"1" * 300}"}}}}'), "for a"),
        (lambda w, p: p.write_text('{"weight_map": {"a": ""}}'), "has '' for a"),
        (lambda w, p: p.write_text("x" * 300), "not a checkpoint that torch"),
        (lambda w, p: (torch.save(w, p), directory_moved(p)), "not a checkpoint that torch"),
        (lambda w, p: p.write_bytes(bytes(range(1, 200)) * 20), "not a checkpoint that torch"),
        (lambda w, p: (torch.save(w, p), encrypted(p)), "the archive is encrypted"),
        (lambda w, p: (torch.save(w, p), packed(p)), "the archive is compressed"),
        (lambda w, p: np.savez(p.open("wb"), **w), "this archive is not a checkpoint"),
        (lambda w, p: torch.jit.script(torch.nn.ReLU()).save(str(p)), "a TorchScript program"),
        (lambda w, p: os.mkfifo(p), "a pipe or a device"),
        (lambda w, p: p.mkdir(), "a folder without a checkpoint that Hugging Face would write"),
        (lambda w, p: p.symlink_to("nowhere"), "the link leads to no file"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_stand_in_is_called_what_it_is(
    tmp_path: Path, write: Callable, says: str, name: str
) -> None:
    with pytest.raises(SourceError) as caught:
        filled(tmp_path, write, name)
    assert caught.value.what.startswith(f"source.checkpoint: {name}")
    assert not isinstance(caught.value, UnsafeCheckpointError), "no false alarm of code"
    if name == "w.pt":
        assert says in caught.value.what


def test_an_unreadable_file_does_not_advise_to_run_its_code(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a checkpoint that torch") as caught:
        filled(tmp_path, lambda w, p: p.write_bytes(bytes(range(1, 200)) * 20))
    assert "weights_only" not in str(caught.value)
    assert caught.value.why


def test_one_file_of_several_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="do not fit Small") as caught:
        filled(
            tmp_path,
            lambda w, p: save_file(dict(list(w.items())[:2]), p),
            "model-00001-of-00002.safetensors",
        )
    assert "name its index (….index.json) or its folder" in caught.value.fix


def sharded(weights: dict[str, Any], index: Path, suffix: str = ".safetensors") -> list[Path]:
    """Two shards and their index, as save_pretrained writes them."""
    names = list(weights)
    shards: list[Path] = []
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:2], names[2:]), 1):
        shard = index.with_name(f"model-{number:05}-of-00002{suffix}")
        write = save_file if suffix == ".safetensors" else torch.save
        write({name: weights[name] for name in part}, shard)
        weight_map |= dict.fromkeys(part, shard.name)
        shards.append(shard)
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return shards


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("model.safetensors.index.json", ".safetensors"), ("pytorch_model.bin.index.json", ".bin")],
)
def test_shards_are_read_by_their_index_or_their_folder(
    tmp_path: Path, name: str, suffix: str
) -> None:
    filled(tmp_path, lambda w, p: sharded(w, p, suffix), name)
    folder = tmp_path / "saved"
    folder.mkdir()
    filled(tmp_path, lambda w, p: sharded(w, p / name, suffix), "saved")
    (folder / name.removesuffix(".index.json")).write_bytes(b"x")
    with pytest.raises(SourceError, match="the folder has") as caught:
        filled(tmp_path, lambda w, p: None, "saved")
    assert f"saved/{name.removesuffix('.index.json')}" in caught.value.fix


def test_a_shard_that_is_missing_or_of_another_model_is_named(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = "model.safetensors.index.json"
    with pytest.raises(SourceError, match=f"{second} does not exist"):
        filled(tmp_path, lambda w, p: sharded(w, p)[1].unlink(), index)
    with pytest.raises(SourceError, match=f"{first}: it holds other tensors than {index}"):
        filled(tmp_path, lambda w, p: save_file({"a": w["head.bias"]}, sharded(w, p)[0]), index)
    with pytest.raises(SourceError, match=f"{index}: {second}: the file is empty"):
        filled(tmp_path, lambda w, p: sharded(w, p)[1].write_bytes(b""), index)


def test_each_shard_is_in_the_key(tmp_path: Path) -> None:
    weights = state(tmp_path)
    shards = sharded(weights, tmp_path / "model.safetensors.index.json")
    made = TorchSource(callable="code.py:small", checkpoint="model.safetensors.index.json")
    before = source("torch").fingerprint(made, tmp_path)
    changed = {name: weights[name] + 1 for name in list(weights)[2:]}
    save_file(changed, shards[1])
    assert source("torch").fingerprint(made, tmp_path) != before


def beside(prefix: str, *others: str) -> Callable:
    """The model's weights under the prefix, and other weights beside it."""

    def write(weights: dict[str, Any], path: Path) -> None:
        mine = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
        torch.save({"state_dict": {**dict.fromkeys(others, torch.ones(3)), **mine}}, path)

    return write


@pytest.mark.parametrize(
    "write",
    [
        beside("model.", "loss.weight", "criterion.pos_weight"),
        beside("network._orig_mod.", "mean", "std"),
        beside("model.backbone.", "model.head.weight"),
        beside("model.net.module."),
        beside("1."),
    ],
)
def test_what_one_prefix_has_is_the_model_where_it_is_exactly_that(
    tmp_path: Path, write: Callable
) -> None:
    filled(tmp_path, write)


def notes(tmp_path: Path, write: Callable, **more: Any) -> tuple[str, ...]:
    write(state(tmp_path), tmp_path / "w.pt")
    given = TorchSource(callable="code.py:small", checkpoint="w.pt", **more)
    return source("torch").load(given, tmp_path, tmp_path).notes


def test_weights_that_are_not_used_are_named(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, beside("model._orig_mod.", "loss.weight", "mean"))
    assert "w.pt has under model.; 2 others in it are not used: loss.weight, mean" in note
    assert notes(tmp_path, beside("model.")) == ()


@pytest.mark.parametrize(
    ("others", "says"),
    [(("blocks.1.weight",), "blocks.1.weight"), (("model.fc.weight",), "fc.weight")],
)
def test_a_part_of_a_deeper_model_is_not_taken_for_it(
    tmp_path: Path, others: tuple[str, ...], says: str
) -> None:
    prefix = "model." if others[0].startswith("model.") else ""
    with pytest.raises(SourceError, match="do not fit Small") as caught:
        filled(tmp_path, beside(prefix, *others))
    assert says in caught.value.why
    with pytest.raises(SourceError, match="do not fit Small"):
        filled(tmp_path, beside("blocks.0.", "head.weight"))


def test_two_models_under_two_prefixes_are_the_users_choice(tmp_path: Path) -> None:
    def write(weights: dict[str, Any], path: Path) -> None:
        student = {f"student.{name}": tensor + 1 for name, tensor in weights.items()}
        teacher = {f"teacher.{name}": tensor for name, tensor in weights.items()}
        torch.save({"state_dict": {**student, **teacher}, "epoch": 3}, path)

    with pytest.raises(SourceError, match="several models that fit Small") as caught:
        filled(tmp_path, write)
    assert caught.value.why == "they are under student., teacher."
    filled(tmp_path, write, checkpoint_key="teacher")
    with pytest.raises(SourceError, match="holds no weights under 'teach'"):
        filled(tmp_path, write, checkpoint_key="teach")


def test_what_is_not_a_tensor_among_tensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a state dict") as caught:
        filled(tmp_path, lambda w, p: torch.save({**w, "note": None}, p))
    assert caught.value.why.endswith("tensors it holds note (NoneType)")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.to_sparse(), "head.weight is sparse"),
        (lambda t: t.to("meta"), "head.weight has no numbers"),
    ],
)
def test_tensors_without_numbers_of_their_own_are_refused_by_name(
    tmp_path: Path, change: Callable, says: str
) -> None:
    def write(weights: dict[str, Any], path: Path) -> None:
        torch.save({**weights, "head.weight": change(weights["head.weight"])}, path)

    with pytest.raises(SourceError, match="do not fit Small") as caught:
        filled(tmp_path, write)
    assert says in caught.value.why


def test_fp8_weights_are_numbers_like_others_and_nan_is_no_conflict(tmp_path: Path) -> None:
    recipe(tmp_path)
    (tmp_path / "tied.py").write_text(TIED)
    made = TorchSource(callable="tied.py:Tied", checkpoint="w.safetensors")
    for weight in (torch.ones(5, 4).to(torch.float8_e4m3fn), torch.full((5, 4), torch.nan)):
        both = {"embedding.weight": weight, "head.weight": weight.clone()}
        save_file(both, tmp_path / "w.safetensors")
        module = source("torch").load(made, tmp_path, tmp_path).model
        assert torch.equal(module.head.weight.nan_to_num(), weight.float().nan_to_num())


def test_hyperparameters_may_be_a_namespace(tmp_path: Path) -> None:
    recipe(tmp_path)
    (tmp_path / "tiny.py").write_text(MODULE)
    weights = {"_orig_mod.layer.weight": torch.ones(3, 2), "_orig_mod.layer.bias": torch.ones(3)}
    kept = {"state_dict": weights, "hyper_parameters": argparse.Namespace(channels=2, lr=0.1)}
    torch.save(kept, tmp_path / "last.ckpt")
    made = LightningSource(kind="lightning", module="tiny.py:Tiny", checkpoint="last.ckpt")
    module = source("lightning").load(made, tmp_path, tmp_path).model
    assert module.layer.weight.shape == (3, 2)


def test_a_file_that_an_argument_names_is_in_the_key(tmp_path: Path) -> None:
    recipe(tmp_path)
    (tmp_path / "mine.pt").write_bytes(b"one")
    arguments = {"files": {"weights": ["mine.pt"]}, "kind": "small"}
    made = TorchSource(callable="code.py:small", arguments=arguments)
    before = source("torch").fingerprint(made, tmp_path)
    (tmp_path / "mine.pt").write_bytes(b"two")
    assert source("torch").fingerprint(made, tmp_path) != before


def test_a_checkpoint_fills_a_module_that_has_no_numbers_yet(tmp_path: Path) -> None:
    recipe(tmp_path)
    code = MODULE + "\ndef empty():\n    with torch.device('meta'):\n        return Tiny()\n"
    (tmp_path / "empty.py").write_text(code)
    weights = {"layer.weight": torch.ones(3, 4).half(), "layer.bias": torch.ones(3)}
    torch.save(weights, tmp_path / "w.pt")
    made = TorchSource(callable="empty.py:empty", checkpoint="w.pt")
    module = source("torch").load(made, tmp_path, tmp_path).model
    assert torch.equal(module.layer.weight, torch.ones(3, 4))
    assert module.layer.weight.dtype == torch.float32, "the model's type, as where it is copied"
