"""Prefect tasks: retries, a timeout, a log line, one call into enginefarm each."""
