"""Selects the engine that fits a host, downloads it, and explains what a host lacks."""
