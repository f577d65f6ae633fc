"""Log lines as JSON, one object a line, with the run and the spec they belong to."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

FIELDS = {
    "flow_run_id": "flow_run",
    "flow_run_name": "flow_run_name",
    "task_run_id": "task_run",
    "task_run_name": "task_run_name",
    "deployment_id": "deployment",
    "worker_name": "worker",
    "spec": "spec",
    "recipe": "recipe",
    "gpu": "gpu",
}
"""Attribute of a record (Prefect sets its own, ours come by `extra`) -> field of the line."""


class JsonLines(logging.Formatter):
    """time, level, logger, message; the ids that the record has; error, when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for attribute, field in FIELDS.items():
            value = getattr(record, attribute, None)
            if value is not None:
                line[field] = str(value)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
