"""Writes samples.npz: 32 crops of real pictures, 3 x 96 x 96, in 0-1.

python examples/04_onnx/make_data.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images

SIZE = 96


def main() -> None:
    random = np.random.default_rng(0)
    crops = []
    for picture in load_sample_images().images:
        for _ in range(16):
            top = random.integers(picture.shape[0] - SIZE)
            left = random.integers(picture.shape[1] - SIZE)
            crops.append(picture[top : top + SIZE, left : left + SIZE].transpose(2, 0, 1))
    images = np.stack(crops).astype(np.float32) / np.float32(255)
    np.savez_compressed(Path(__file__).with_name("samples.npz"), image=images)


if __name__ == "__main__":
    main()
