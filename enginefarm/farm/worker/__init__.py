"""A worker: what it says of itself, how it serves, drains and starts runs."""
