"""Inputs for the models of the zoo, made of the pictures and texts that packages ship.

One function a kind of model, each an endless generator of batches by seed: other seeds, other
samples. `zoo.py` copies this file beside each model that it builds.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import acoustics  # beside this file, wherever it is copied to
import numpy as np

Array = np.ndarray[Any, Any]
Batches = Iterator[dict[str, Array]]
IMAGENET_MEAN = [123.675, 116.28, 103.53]
IMAGENET_STD = [58.395, 57.12, 57.375]


def pictures(
    seed: int,
    batch_size: int = 4,
    name: str = "images",
    sizes: Sequence[Sequence[int]] = ((224, 224),),
    mean: Any = IMAGENET_MEAN,
    std: Any = IMAGENET_STD,
    layout: str = "NCHW",
    bgr: bool = False,
) -> Batches:
    """Crops of photographs, (batch, 3, height, width) unless the layout is NHWC."""
    rnd, photos = np.random.default_rng(seed), _photographs()
    while True:
        height, width = sizes[int(rnd.integers(len(sizes)))]
        chosen = (photos[rnd.integers(len(photos))] for _ in range(batch_size))
        made = np.stack([_crop(one, rnd, height, width) for one in chosen]).astype(np.float32)
        made = made[..., ::-1] if bgr else made
        made = (made - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
        made = made if layout == "NHWC" else made.transpose(0, 3, 1, 2)
        yield {name: np.ascontiguousarray(made).astype(np.float32)}


def shifted_pairs(seed: int, batch_size: int = 1) -> Batches:
    """A picture and the same one moved, for optical flow."""
    for batch in pictures(seed, batch_size, "a", [(128, 160)], 127.5, 127.5):
        yield {**batch, "b": np.ascontiguousarray(np.roll(batch["a"], (2, 3), (2, 3)))}


def text_lines(seed: int, batch_size: int = 8) -> Batches:
    """Lines of printed text, some upside down."""
    rnd, known = np.random.default_rng(seed), _words()
    while True:
        lines = [
            _line(rnd, 48, 192, known)[:: 1 if rnd.random() < 0.5 else -1]
            for _ in range(batch_size)
        ]
        made = (np.stack(lines) / 255 - 0.5) / 0.5
        yield {"x": np.ascontiguousarray(made.transpose(0, 3, 1, 2)).astype(np.float32)}


def gray_lines(seed: int, batch_size: int = 1) -> Batches:
    """Grey lines of several widths, (1, 1, 64, width)."""
    rnd, known = np.random.default_rng(seed), _words()
    while True:
        line = _line(rnd, 64, int(rnd.choice([96, 128, 160, 200, 256])), known).mean(-1)
        yield {"input1": ((line / 255 - 0.5) / 0.5)[None, None].astype(np.float32)}


def pages(seed: int, batch_size: int = 1) -> Batches:
    """Photographs with printed words on them."""
    rnd, known, photos = np.random.default_rng(seed), _words(), _photographs()
    while True:
        page = _page(rnd, 416, 416, known, photos[rnd.integers(len(photos))])
        yield {"images": np.ascontiguousarray(page.transpose(2, 0, 1)[None]).astype(np.float32)}


def echo_features(seed: int, batch_size: int = 1) -> Batches:
    """Log spectra of three sounds, and a state of zeros."""
    rnd = np.random.default_rng(seed)
    while True:
        frames = int(rnd.choice([200, 300, 600]))
        spectra = [acoustics.spectra(rnd, frames, 320, 512)[:, :160] for _ in range(3)]
        made = np.log10(np.maximum(np.stack(spectra), 1e-12)) / 10 + 0.5
        yield {"input": made[None].astype(np.float32), "h0": np.zeros((4, 1, 64), np.float32)}


def sounds(
    seed: int,
    batch_size: int = 2,
    name: str = "audio",
    samples: Sequence[int] = (16000,),
    rate: int = 16000,
    last_axis: bool = False,
    normal: bool = False,
) -> Batches:
    """Raw sound, (batch, samples)."""
    rnd = np.random.default_rng(seed)
    while True:
        count = int(rnd.choice(samples))
        made = np.stack([acoustics.sound(rnd, count, rate) for _ in range(batch_size)])
        if normal:
            made = (made - made.mean(1, keepdims=True)) / (made.std(1, keepdims=True) + 1e-5)
        yield {name: (made[..., None] if last_axis else made).astype(np.float32)}


def pitch_frames(seed: int, batch_size: int = 32) -> Batches:
    """Frames of 1024 samples, each with mean 0 and deviation 1."""
    rnd = np.random.default_rng(seed)
    while True:
        sound = acoustics.sound(rnd, 160 * batch_size + 1024, 16000)
        frames = np.stack([sound[160 * i : 160 * i + 1024] for i in range(batch_size)])
        frames = frames - frames.mean(1, keepdims=True)
        made = frames / np.maximum(frames.std(1, keepdims=True), 1e-10)
        yield {"frames": made.astype(np.float32)}


def mels(seed: int, batch_size: int = 4) -> Batches:
    """Mel spectra, (batch, frames, 40)."""
    rnd, bands = np.random.default_rng(seed), acoustics.bands(16000, 400, 40)
    while True:
        frames = int(rnd.choice([80, 160, 160, 240]))
        made = [acoustics.spectra(rnd, frames, 400, 400) @ bands.T for _ in range(batch_size)]
        yield {"mels": np.stack(made).astype(np.float32)}


def log_mels(seed: int, batch_size: int = 1) -> Batches:
    """Log mel spectra of 30 seconds, (batch, 80, 3000)."""
    rnd, bands = np.random.default_rng(seed), acoustics.bands(16000, 400, 80, scaled=False)
    while True:
        logs = np.log10(np.maximum(acoustics.spectra(rnd, 3000, 400, 400) @ bands.T, 1e-10))
        logs = (np.maximum(logs, logs.max() - 8) + 4) / 4
        yield {"mels": logs.T[None].astype(np.float32).repeat(batch_size, 0)}


def voice_windows(seed: int, batch_size: int = 8, rate_input: bool = False) -> Batches:
    """Windows of 576 samples with a state, and with the sampling rate where it is an input."""
    rnd = np.random.default_rng(seed)
    while True:
        sound = acoustics.sound(rnd, 1024 * batch_size + 64, 16000)
        starts = rnd.integers(0, len(sound) - 576, batch_size)
        state = rnd.normal(0, 0.3, (2, batch_size, 128)).astype(np.float32)
        made = {"input": np.stack([sound[i : i + 576] for i in starts]), "state": state}
        yield {**made, "sr": np.array(16000, np.int64)} if rate_input else made


def voice_sequence(seed: int, batch_size: int = 32) -> Batches:
    """Windows one after the other, with both states of an LSTM."""
    rnd = np.random.default_rng(seed)
    while True:
        sound = acoustics.sound(rnd, 1024 * batch_size + 64, 16000)
        windows = np.stack([sound[512 * i : 512 * i + 576] for i in range(batch_size)])
        states = {"h": rnd.normal(0, 0.3, (1, 1, 128)), "c": rnd.normal(0, 0.6, (1, 1, 128))}
        yield {"input": windows, **{name: one.astype(np.float32) for name, one in states.items()}}


def separation(seed: int, batch_size: int = 1) -> Batches:
    """Log mels and a speaker's vector, with states of zeros."""
    rnd = np.random.default_rng(seed)
    while True:
        yield {
            "stacked_logmel": rnd.normal(0, 1, (1, 8, 512)).astype(np.float32),
            "dvec": rnd.normal(0, 0.06, (1, 256)).astype(np.float32),
            "h0": np.zeros((3, 1, 512), np.float32),
            "c0": np.zeros((3, 1, 512), np.float32),
        }


def tokens(seed: int, batch_size: int = 4, vocabulary: int = 8000) -> Batches:
    """Token numbers as frequent as words are, with masks of padding."""
    rnd = np.random.default_rng(seed)
    while True:
        length = int(rnd.choice([12, 24, 40, 64]))
        found = rnd.zipf(1.3, (batch_size, length)) % vocabulary
        used = rnd.integers(length // 2, length + 1, batch_size)
        used[0] = length
        mask = (np.arange(length)[None] < used[:, None]).astype(np.int64)
        yield {"input_ids": (found * mask).astype(np.int64), "attention_mask": mask}


def file_bytes(seed: int, batch_size: int = 8) -> Batches:
    """First and last 1024 bytes of files of this machine; 256 where a file is shorter."""
    from pathlib import Path

    rnd = np.random.default_rng(seed)
    folders = ("lib/python3", "share", "bin", "lib/x86_64-linux-gnu")
    found = (path for folder in folders for path in sorted(Path("/usr", folder).rglob("*")))
    files = [path for path in found if path.is_file() and path.stat().st_size > 200]
    while True:
        rows: list[list[int]] = []
        for index in rnd.integers(0, len(files), batch_size):
            with files[index].open("rb") as stream:
                text = stream.read(1 << 16).strip()
            first, last = text[:1024], text[-1024:]
            filler = [256] * 1024
            rows.append([*first, *filler[len(first) :], *filler[len(last) :], *last])
        yield {"bytes": np.array(rows, np.int32)}


def noise(seed: int, batch_size: int = 2, shape: Sequence[int] = (256, 8)) -> Batches:
    rnd = np.random.default_rng(seed)
    while True:
        yield {"x": rnd.normal(0, 1, (batch_size, *shape)).astype(np.float32)}


def _photographs() -> list[Any]:
    import skimage.data
    from PIL import Image
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
    arrays = [getattr(skimage.data, name)() for name in names]
    arrays += [*skimage.data.stereo_motorcycle()[:2], *load_sample_images().images]
    return [Image.fromarray(one).convert("RGB") for one in arrays]


def _crop(photo: Any, rnd: np.random.Generator, height: int, width: int) -> Array:
    from PIL import Image

    side = int(min(photo.size) * rnd.uniform(0.4, 1.0))
    left = int(rnd.integers(photo.width - side + 1))
    top = int(rnd.integers(photo.height - side + 1))
    box = (left, top, left + side, top + side)
    made = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return made[:, ::-1] if rnd.random() < 0.5 else made


def _words() -> list[str]:
    import sklearn.datasets

    names = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
    found = [getattr(sklearn.datasets, f"load_{name}")().DESCR for name in names]
    found += [inspect.getdoc(getattr(np, name)) or "" for name in sorted(np.__all__)]
    paragraphs = (re.sub(r"\s+", " ", part).strip() for one in found for part in one.split("\n\n"))
    long = [part for part in paragraphs if len(part) > 60 and ">>>" not in part]
    return [word for part in long for word in part.split() if word.isascii()]


def _font(size: float) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _line(rnd: np.random.Generator, height: int, width: int, known: list[str]) -> Array:
    from PIL import Image, ImageDraw

    paper, ink = (tuple(int(v) for v in rnd.integers(*ends, 3)) for ends in ((150, 256), (0, 90)))
    picture = Image.new("RGB", (width, height), paper)
    text = " ".join(known[int(rnd.integers(len(known)))] for _ in range(12))
    place = (int(rnd.integers(2, 8)), int(rnd.integers(0, max(1, height // 6))))
    font = _font(float(rnd.uniform(0.45, 0.8)) * height)
    ImageDraw.Draw(picture).text(place, text, fill=ink, font=font)
    made = np.asarray(picture).astype(np.float32)
    made = made + rnd.normal(0, rnd.uniform(0, 8), made.shape)
    return np.clip(made, 0, 255).astype(np.float32)


def _page(rnd: np.random.Generator, height: int, width: int, known: list[str], photo: Any) -> Array:
    from PIL import Image, ImageDraw

    picture = Image.fromarray(_crop(photo, rnd, height, width).copy())
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rnd.integers(3, 10))):
        font = _font(float(rnd.uniform(14, 42)))
        text = " ".join(known[int(rnd.integers(len(known)))] for _ in range(rnd.integers(1, 5)))
        place = (int(rnd.integers(0, width * 2 // 3)), int(rnd.integers(0, height - 40)))
        paper = tuple(int(v) for v in rnd.integers(180, 256, 3))
        if rnd.random() < 0.6:
            draw.rectangle(draw.textbbox(place, text, font=font), fill=paper)
        ink = tuple(int(v) for v in rnd.integers(0, 100, 3))
        draw.text(place, text, fill=ink, font=font)
    return np.asarray(picture).astype(np.float32)
