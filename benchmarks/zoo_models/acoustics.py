"""Sounds that are made up, and their spectra."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def spectra(rnd: np.random.Generator, frames: int, window: int, extra: int) -> Array:
    """Power spectra of a sound, (frames, window / 2 + 1)."""
    whole = sound(rnd, 160 * frames + extra, 16000)
    cut = np.stack([whole[160 * i : 160 * i + window] for i in range(frames)])
    return np.abs(np.fft.rfft(cut * np.hanning(window))) ** 2


def bands(rate: int, window: int, count: int, scaled: bool = True) -> Array:
    """Triangles of mel bands, (count, window / 2 + 1)."""
    frequencies = np.linspace(0, rate / 2, window // 2 + 1)
    top = 2595 * np.log10(1 + rate / 2 / 700)
    points = 700 * (10 ** (np.linspace(0, top, count + 2) / 2595) - 1)
    low, middle, high = points[:-2, None], points[1:-1, None], points[2:, None]
    up, down = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    made = np.maximum(0, np.minimum(up, down))
    return made * (2 / (high - low)) if scaled else made


def sound(rnd: np.random.Generator, count: int, rate: int) -> Array:
    """Voiced, unvoiced and silent stretches: harmonics with formants, noise, vibrato."""
    made, start = np.zeros(count, np.float32), 0
    while start < count:
        length = min(int(rnd.uniform(0.04, 0.35) * rate), count - start)
        kind = rnd.random()
        if kind < 0.6:
            part = _voiced(rnd, length, rate)
        else:
            part = rnd.normal(0, 0.3 if kind < 0.8 else 0.002, length)
        near = np.minimum(np.arange(length), np.arange(length)[::-1])
        part = part * np.minimum(1, near / (0.01 * rate))
        loud = rnd.uniform(0.05, 0.8) if kind < 0.8 else 0.01
        made[start : start + length] = part / (np.abs(part).max() + 1e-6) * loud
        start += length
    return made + rnd.normal(0, 10 ** rnd.uniform(-4, -2), count).astype(np.float32)


def _voiced(rnd: np.random.Generator, length: int, rate: int) -> Array:
    from scipy.signal import lfilter

    t = np.arange(length) / rate
    vibrato = 1 + 0.03 * np.sin(2 * np.pi * rnd.uniform(3, 7) * t)
    pitch = rnd.uniform(70, 500) * vibrato * np.exp(rnd.uniform(-0.3, 0.3) * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tones = [h for h in range(1, 25) if 500 * h < rate]
    made = np.sum([np.sin(h * phase) / h ** rnd.uniform(0.6, 1.4) for h in tones], axis=0)
    for ends in ((300, 900), (900, 2500), (2500, 3600)):
        formant, r = rnd.uniform(*ends), np.exp(-np.pi * rnd.uniform(60, 200) / rate)
        poles = [1, -2 * r * np.cos(2 * np.pi * formant / rate), r * r]
        made = np.asarray(lfilter([1 - r], poles, made)) + 0.2 * made
    return made
