"""Channels moved, gates between, old engines collected, upgrades looked at."""
