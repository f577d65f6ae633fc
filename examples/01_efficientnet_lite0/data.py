"""Pictures that scikit-image and scikit-learn ship, as random crops at 224 x 224."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

SIZE = 224
MEAN, STD = 127.0, 128.0  # of the TensorFlow Lite models that the weights come from


def photographs() -> list[Image.Image]:
    """The color photographs in the two packages: 10, of 300 to 1000 pixels a side."""
    names = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
    arrays = [getattr(skimage.data, name)() for name in names]
    arrays += list(skimage.data.stereo_motorcycle()[:2])
    arrays += load_sample_images().images
    return [Image.fromarray(array).convert("RGB") for array in arrays]


def crops(seed: int, batch_size: int = 8) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches {"images": (batch_size, 3, 224, 224) float32}.

    Each is a random photograph, cropped to 35-100 % of its shorter side and mirrored by
    chance: the augmentation that the network was trained with, without the color changes.
    """
    random = np.random.default_rng(seed)
    pictures = photographs()
    while True:
        batch = [_crop(pictures[random.integers(len(pictures))], random) for _ in range(batch_size)]
        yield {"images": np.stack(batch)}


def _crop(picture: Image.Image, random: np.random.Generator) -> np.ndarray:
    side = int(min(picture.size) * random.uniform(0.35, 1.0))
    left = int(random.integers(picture.width - side + 1))
    top = int(random.integers(picture.height - side + 1))
    box = (left, top, left + side, top + side)
    pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    return ((pixels.astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)
