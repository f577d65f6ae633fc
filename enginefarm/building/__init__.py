"""Builds a plan from a graph: in a child process, with a timing cache, in several attempts."""
