"""The types of NumPy arrays, for annotations. Importing this module does not load NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Arrays = dict[str, Array]
    """Arrays by the name of the tensor."""
