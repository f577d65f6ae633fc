"""Models of the zoo that come as PyTorch: with weights out of a wheel, or random ones.

Random weights prove that a graph builds, and say nothing about its accuracy. `zoo.py` copies
this file beside each model that it builds, with `data.py` and the files of its wheel.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).parent


class Part(nn.Module):
    """One of the outputs that a model returns by name or position."""

    def __init__(self, model: nn.Module, pick: str | int) -> None:
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        made = self.model(*given)
        if isinstance(self.pick, str):
            return made[self.pick] if isinstance(made, dict) else getattr(made, self.pick)
        return made[self.pick] if isinstance(made, (tuple, list)) else made


class Masked(nn.Module):
    """A model of tokens, its inputs given by name."""

    def __init__(self, model: nn.Module, pick: str) -> None:
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(input_ids=input_ids, attention_mask=attention_mask), self.pick)


def crepe() -> nn.Module:
    """The pitch tracker's own module, which reads one constant of its package."""
    package: Any = types.ModuleType("torchcrepe")
    package.PITCH_BINS = 360
    sys.modules["torchcrepe"] = package
    made = import_module("network").Crepe("full")
    made.load_state_dict(_weights())
    return made.eval()


def deepsort() -> nn.Module:
    made = import_module("network").MobileNetV2_bottle(input_size=224, width_mult=1.0)
    made.load_state_dict(_weights())
    return made.eval()


class FaceNet(nn.Module):
    """The last of MTCNN's three networks, as its package computes it."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 2))
        for number, (before, after, kernel) in enumerate(sizes, 1):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, kernel))
            self.add_module(f"prelu{number}", nn.PReLU(after))
        self.pools = [nn.MaxPool2d(size, 2, ceil_mode=True) for size in (3, 3, 2)]
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, 2), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for number in range(1, 5):
            x = getattr(self, f"prelu{number}")(getattr(self, f"conv{number}")(x))
            x = self.pools[number - 1](x) if number < 4 else x
        x = x.permute(0, 3, 2, 1).contiguous()
        x = self.prelu5(self.dense5(x.view(x.shape[0], -1)))
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(1)


def face_net() -> nn.Module:
    made = FaceNet()
    made.load_state_dict(_weights())
    return made.eval()


class Voice(nn.Module):
    """The speaker encoder, as its package computes it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.lstm(mels)
        made = torch.relu(self.linear(hidden[-1]))
        return made / torch.norm(made, dim=1, keepdim=True)


def voice() -> nn.Module:
    made = Voice()
    # An old checkpoint, which holds more than tensors; it comes from the package's own wheel.
    kept = torch.load(HERE / "weights.pt", map_location="cpu", weights_only=False)["model_state"]
    made.load_state_dict(kept, strict=False)
    return made.eval()


class Ramp(nn.Module):
    """(batch, frames, 8) times a ramp over frames, whose length is a shape cast to float."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.arange(x.shape[1], dtype=torch.float32) / 4096
        return self.linear(x) * ramp[None, :, None]


def ramp() -> nn.Module:
    return Ramp().eval()


def wide_layers(width: int = 8192, layers: int = 10) -> nn.Module:
    """Above 2 GB of weights."""
    torch.manual_seed(0)
    made = nn.Sequential()
    for _ in range(layers):
        layer = nn.Linear(width, width)
        nn.init.normal_(layer.weight, 0, (2 / width) ** 0.5)
        made.append(layer)
        made.append(nn.ReLU())
    return made.eval()


def timm(arch: str, settled: bool = False) -> nn.Module:
    torch.manual_seed(0)
    made = import_module("timm").create_model(arch, pretrained=False, num_classes=1000)
    return _settle(made, 8, [(224, 224)]) if settled else made.eval()


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    make = import_module("torchvision").models.segmentation.deeplabv3_mobilenet_v3_large
    made = make(weights=None, weights_backbone=None, num_classes=21)
    return Part(_settle(made, 2, [(256, 256), (256, 384)]), "out")


def unet() -> nn.Module:
    torch.manual_seed(0)
    made = import_module("segmentation_models_pytorch").Unet(
        "resnet18", encoder_weights=None, classes=3
    )
    return _settle(made, 2, [(256, 256), (256, 384)])


class Flow(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.model(a, b, num_flow_updates=3)[-1]


def flow() -> nn.Module:
    torch.manual_seed(0)
    return Flow(import_module("torchvision").models.optical_flow.raft_small(weights=None).eval())


def yolo() -> nn.Module:
    torch.manual_seed(0)
    made: Any = import_module("ultralytics.nn.tasks").DetectionModel("yolo11n.yaml", verbose=False)
    _settle(made, 2, [(320, 320), (320, 416)], mean=0, std=255)
    made.model[-1].format = "onnx"
    for module in made.modules():
        for name in ("export", "dynamic"):
            if hasattr(module, name):
                setattr(module, name, True)
    return Part(made, 0)


def transformer(kind: str) -> nn.Module:
    """A small one of each kind, its weights random."""
    torch.manual_seed(0)
    made, pick, masked = TRANSFORMERS[kind](import_module("transformers"))
    return Masked(made.eval(), pick) if masked else Part(made.eval(), pick)


def _bert(tr: Any) -> tuple[nn.Module, str, bool]:
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return tr.BertModel(tr.BertConfig(**sizes, intermediate_size=512)), "last_hidden_state", True


def _llama(tr: Any) -> tuple[nn.Module, str, bool]:
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    made = tr.LlamaConfig(**sizes, **heads, vocab_size=8000, use_cache=False)
    return tr.LlamaForCausalLM(made), "logits", True


def _gpt2(tr: Any) -> tuple[nn.Module, str, bool]:
    made = tr.GPT2Config(n_embd=256, n_layer=2, n_head=8, vocab_size=8000, use_cache=False)
    return tr.GPT2LMHeadModel(made), "logits", True


def _clip(tr: Any) -> tuple[nn.Module, str, bool]:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    picture = {"image_size": 224, "patch_size": 32, "projection_dim": 128}
    made = tr.CLIPVisionConfig(**sizes, **picture, num_attention_heads=4)
    return tr.CLIPVisionModelWithProjection(made), "image_embeds", False


def _whisper(tr: Any) -> tuple[nn.Module, str, bool]:
    encoder = {"encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 6, "decoder_ffn_dim": 256}
    made = tr.WhisperModel(tr.WhisperConfig(d_model=384, **encoder, **decoder))
    return made.encoder, "last_hidden_state", False


def _wav2vec(tr: Any) -> tuple[nn.Module, str, bool]:
    sizes = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = tr.Wav2Vec2Model(tr.Wav2Vec2Config(**sizes, intermediate_size=512))
    return made, "last_hidden_state", False


TRANSFORMERS = {
    "bert": _bert,
    "llama": _llama,
    "gpt2": _gpt2,
    "clip": _clip,
    "whisper": _whisper,
    "wav2vec": _wav2vec,
}


def _weights() -> dict[str, torch.Tensor]:
    return torch.load(HERE / "weights.pt", map_location="cpu", weights_only=True)


def _settle(model: nn.Module, batch_size: int, sizes: Any, **how: Any) -> nn.Module:
    """Batch norms that have seen pictures: their statistics are no longer those of nothing."""
    batches: Iterator[dict[str, Any]] = import_module("data").pictures(
        7, batch_size, sizes=sizes, **how
    )
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.from_numpy(next(batches)["images"]))
    return model.eval()
