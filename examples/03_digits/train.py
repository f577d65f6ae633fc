"""Trains the classifier and writes digits.safetensors.

    python examples/03_digits/train.py

Seconds on one core. Deterministic on one machine: seeds are fixed and one thread is used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from data import split
from model import digits

EPOCHS, BATCH, RATE = 20, 64, 2e-3


def train() -> tuple[nn.Module, float]:
    """The trained model in eval mode, and its top-1 accuracy on the test images."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, test_images, labels, test_labels = (torch.from_numpy(part) for part in split())
    model = digits().train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE * 5, total_steps=EPOCHS * -(-len(images) // BATCH)
    )
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
    return model, accuracy


if __name__ == "__main__":
    trained, accuracy = train()
    save_file(trained.state_dict(), Path(__file__).with_name("digits.safetensors"))
    print(f"top-1 on the test images: {accuracy:.4f}")
