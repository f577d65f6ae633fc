"""A plan from a graph: in a child process, with a timing cache, drawn several times where asked."""
