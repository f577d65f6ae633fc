"""Child processes: how they start, what they inherit, and how they end with their parent."""

COLLECT = (100_000, 20, 20)
"""`gc.set_threshold` of our commands and children. Nearly all that a process imports or exports
lives on, and at Python's own thresholds a sixth of that is spent on looking for garbage in it."""
