"""scikit-learn's handwritten digits: 1797 labeled images, two thirds of them for training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, test images (n, 1, 8, 8) float32 in 0-1, and their labels (n,)."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    return tuple(
        train_test_split(images, digits.target, test_size=1 / 3, random_state=0, shuffle=True)
    )


def training(seed: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Endless random batches of training images, for calibration."""
    images = split()[0]
    random = np.random.default_rng(seed)
    while True:
        yield {"images": images[random.integers(len(images), size=batch_size)]}


def held_out(batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All test images, in order, with their labels under `digit`."""
    _, images, _, labels = split()
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        yield {"images": images[part], "digit": labels[part]}
