"""A small convolutional classifier of handwritten digits."""

from __future__ import annotations

from torch import nn


def digits(channels: int = 16) -> nn.Module:
    """images (batch, 1, 8, 8), grey values 0-1 -> scores (batch, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    ).eval()
