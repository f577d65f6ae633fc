"""What a recipe would build, what is already built, and why."""
