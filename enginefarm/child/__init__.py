"""Child processes: how they start, what they inherit, and how they end with their parent."""
