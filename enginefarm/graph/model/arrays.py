"""The types of NumPy arrays, for annotations."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
"""Arrays by the name of the tensor."""
