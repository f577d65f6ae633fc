"""The Prefect server, its deployments, and how the farm finds it."""
