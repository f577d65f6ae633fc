"""Samples for calibration and verification, at every size that a profile allows."""
