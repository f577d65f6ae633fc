"""Set when this process is asked to stop; builds look at it and kill their child."""

from __future__ import annotations

import threading

CANCEL = threading.Event()
