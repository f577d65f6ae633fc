"""Writes, filters and compares benchmark rows."""
