"""A worker: how it describes itself, how it serves, drains and starts runs."""
