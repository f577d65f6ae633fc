"""Benchmark rows: written, filtered, compared."""
