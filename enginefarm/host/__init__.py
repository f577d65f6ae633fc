"""What this machine has: its GPU, the runtimes installed, and what a plan says in its header."""
