"""A fresh process: how it starts, what it inherits, how it ends with its parent."""
