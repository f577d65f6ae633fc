"""What is done to a graph as it is read, so that every toolchain takes it for the same function."""
