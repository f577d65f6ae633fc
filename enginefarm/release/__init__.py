"""Promotion with its gates, rollouts to Triton, garbage collection, upgrades, costs, exports."""
