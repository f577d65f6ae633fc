"""Prefect flows: lists of steps. The work is enginefarm's; the steps are tasks'."""
