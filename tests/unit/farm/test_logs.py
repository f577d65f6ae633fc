"""Log lines as JSON."""

from __future__ import annotations

import json
import logging

from enginefarm.farm.worker.logs import JsonLines


def line_of(record: logging.LogRecord) -> dict[str, str]:
    text = JsonLines().format(record)
    assert "\n" not in text
    return json.loads(text)


def test_run_and_spec_ids_are_fields() -> None:
    record = logging.makeLogRecord(
        {
            "name": "prefect.task_runs",
            "levelname": "INFO",
            "msg": "plan %s\nsecond line",
            "args": ("abc",),
            "flow_run_id": "f-1",
            "task_run_id": "t-1",
            "spec": "0123",
        }
    )
    line = line_of(record)
    assert line["message"] == "plan abc\nsecond line"
    assert (line["flow_run"], line["task_run"], line["spec"]) == ("f-1", "t-1", "0123")
    assert line["level"] == "info"
    assert "recipe" not in line


def test_an_error_comes_with_its_traceback() -> None:
    try:
        raise ValueError("bad")
    except ValueError as error:
        record = logging.makeLogRecord(
            {"msg": "x", "exc_info": (type(error), error, error.__traceback__)}
        )
    assert "ValueError: bad" in line_of(record)["error"]
