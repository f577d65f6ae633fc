"""Standard streams that are closed, full, or read by somebody who has enough."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMAND = f"{sys.executable} -P -m enginefarm"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_error(closed: str) -> None:
    done = shell(f"{COMMAND} gpus {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert shell(f"{COMMAND} build {closed}").returncode == 2


def test_what_is_printed_goes_into_no_file_that_is_opened_later() -> None:
    code = (
        "from enginefarm.__main__ import _open_what_is_closed\n"
        "_open_what_is_closed()\n"
        "file = open('/dev/null')\n"
        "assert file.fileno() > 2, file.fileno()\n"
    )
    done = shell(f'{sys.executable} -c "{code}" >&- <&-')
    assert done.returncode == 0, done.stderr


def test_a_reader_who_has_enough_of_a_table_ends_the_command_in_the_usual_way() -> None:
    done = shell(f"{COMMAND} gpus | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout.strip(), done.stderr) == ("141", "")
