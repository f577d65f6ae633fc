"""Commands of the farm side; enginefarm.cli names them by string."""
