"""What a recipe would build, what is there already, and why."""
