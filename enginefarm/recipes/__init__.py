"""Recipes on disk and in the store, and the code that they name."""
