"""Everything of Prefect that is neither a flow nor a task: dispatch, recovery, worker, server."""
