"""Ctrl-C, `kill` and a closed terminal: one line, the exit code, and nothing half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest

from enginefarm import __main__
from enginefarm.bench.load import WallClock, capacity, offered
from enginefarm.run import remote

SLOW = """
import sys, time, types
from pathlib import Path
import click
from enginefarm import cli
from enginefarm.store.disk import appearing

@click.command()
def slow():
    with appearing(Path("engine.plan")) as part:
        part.write_bytes(b"half")
        print("writing", flush=True)
        time.sleep(30)

sys.modules["slow"] = types.SimpleNamespace(slow=slow)
cli.COMMANDS["slow"] = ("slow:slow", "")
cli.main(["slow"])
"""

IN_A_TERMINAL = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
"""The tests themselves may run under nohup, which its children inherit."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_removes_what_it_has_half_written(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", f"{IN_A_TERMINAL}\n{SLOW}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "interrupted")
    assert not list(tmp_path.iterdir())


def test_a_failure_that_stops_what_runs_beside_it_is_not_called_an_interrupt(
    tmp_path: Path,
) -> None:
    failing = SLOW.replace("        time.sleep(30)", "        with cancel_on_error(): 1 / 0")
    ended = subprocess.run(
        [sys.executable, "-c", f"from enginefarm.farm.dispatch import cancel_on_error\n{failing}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
    assert "interrupted" not in ended.stderr


def test_a_library_that_wraps_the_interrupt_shows_no_traceback(tmp_path: Path) -> None:
    """pydantic raises another error, and numpy prints it and goes on."""
    wrapping = SLOW.replace(
        "        time.sleep(30)",
        "        try: time.sleep(30)\n"
        "        except KeyboardInterrupt as cause:\n"
        "            print('Traceback', file=sys.stderr)\n"
        "            raise ValueError('schema') from cause",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", wrapping],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "interrupted")


def test_nohup_is_kept(tmp_path: Path) -> None:
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{SLOW}"
    process = subprocess.Popen(
        [sys.executable, "-c", code.replace("sleep(30)", "sleep(0.5)")],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "engine.plan").read_bytes() == b"half"


def test_ctrl_c_while_the_command_line_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name == "enginefarm.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "enginefarm.cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def interrupt_soon() -> None:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_ctrl_c_ends_the_streams_that_wait_for_their_next_request() -> None:
    began = time.monotonic()
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        offered([60.0, 60.0], [lambda: None, lambda: None], WallClock(), limit_ms=1.0)
    assert time.monotonic() - began < 10


def test_ctrl_c_ends_the_streams_that_are_always_busy() -> None:
    def short() -> None:
        time.sleep(0.01)

    began = time.monotonic()
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        capacity([short, short], 60.0, WallClock())
    assert time.monotonic() - began < 10


def test_a_stream_that_fails_ends_the_others() -> None:
    def broken() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        offered([0.0, 60.0], [broken, lambda: None], WallClock(), limit_ms=1.0)


def test_the_process_of_a_stream_ends_without_a_word_when_nobody_listens() -> None:
    """Its standard error is the command's."""
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "enginefarm.run.remote"),
                *(str(os.getpid()), str(theirs.fileno()), "time:sleep", "no number"),
            ],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
    ours.send_bytes(remote._pack("ready", {}))
    ours.close()
    _, err = process.communicate(timeout=60)
    assert err == ""
