"""A function in a child process: whatever happens there is one error here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from enginefarm.child import lifeline, process
from enginefarm.child.call import Child, Kinds, Limits
from enginefarm.child.cancellation import CANCEL
from enginefarm.errors import (
    BuildCancelled,
    BuildCrashed,
    BuildError,
    BuildOutOfMemory,
    BuildTimeout,
    DiskFull,
    PrecisionError,
    RecipeError,
)
from enginefarm.schema import Frozen
from tests.processes import alive

KINDS = Kinds(BuildError, BuildCrashed, BuildTimeout, BuildOutOfMemory)


def run(script: str, **options: Any) -> str:
    """The script in a child; what it put into `answer`."""
    return Child("the test", error=KINDS, **options).call(f"{__name__}:play", script).text


def play(script: str) -> str:
    names: dict[str, Any] = {"answer": ""}
    exec(script, names)
    return str(names["answer"])


def test_the_answer_comes_back() -> None:
    answer = Child("the test", error=PrecisionError).call("builtins:str", "é {}")
    assert answer.text == "é {}"


def test_what_lives_on_is_not_searched_for_garbage_again_and_again() -> None:
    script = (
        "import gc\n"
        "before = gc.get_stats()[0]['collections']\n"
        "kept = [[] for _ in range(50_000)]\n"
        "answer = gc.get_stats()[0]['collections'] - before"
    )
    assert int(run(script)) <= 1


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ("import faulthandler; faulthandler._sigsegv()", BuildCrashed, "killed by SIGSEGV"),
        ("import sys; sys.exit(0)", BuildError, "SystemExit: 0"),
        ("import os; os._exit(0)", BuildError, "status 0 and no result"),
        ("import os; os._exit(3)", BuildError, "status 3 and no result"),
        ("1 / 0", BuildError, "ZeroDivisionError"),
        ("raise KeyboardInterrupt", BuildError, "KeyboardInterrupt"),
        ("bytearray(1 << 60)", BuildOutOfMemory, "MemoryError"),
        ("def f(): f()\nf()", BuildError, "RecursionError"),
    ],
)
def test_every_end_is_one_error(script: str, kind: type[BuildError], said: str) -> None:
    with pytest.raises(BuildError, match=said) as caught:
        run(script)
    assert type(caught.value) is kind
    assert caught.value.what.startswith("the test")


def test_a_crash_says_where() -> None:
    with pytest.raises(PrecisionError, match="Fatal Python error: Segmentation fault"):
        Child("the test", error=PrecisionError).call(
            "builtins:exec", "import faulthandler; faulthandler._sigsegv()"
        )


def test_an_error_of_ours_keeps_its_class_and_words() -> None:
    with pytest.raises(RecipeError, match="2 mistakes"):
        Child("the test", error=PrecisionError).call(
            "enginefarm.recipes.file:parse",
            "bogus: 1\nname: x\nsource: {kind: onnx, path: a}\ninputs: [{name: x, shape: [1]}]\n",
        )


@pytest.mark.parametrize(
    "script",
    ["while True: pass", "import time; time.sleep(60)", "import signal, time\n"
     "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"],
)  # fmt: skip
def test_a_loop_without_end_ends_at_its_limit(script: str) -> None:
    started = time.monotonic()
    with pytest.raises(BuildTimeout, match=r"limit of 0\.5 s"):
        run(script, limits=Limits(0.5))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "script",
    [
        "held = bytearray(400 << 20); import time; time.sleep(60)",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', "
        "'import time; held = bytearray(400 << 20); time.sleep(60)'])",
    ],
)
def test_memory_has_a_limit_also_for_what_it_starts(script: str) -> None:
    with pytest.raises(BuildOutOfMemory, match="over its limit of 200 MiB"):
        run(script, limits=Limits(30, 200 << 20))


def test_every_child_has_the_limits_of_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that a child starts, and whoever asks for none."""
    monkeypatch.setenv("ENGINEFARM_BUILD_MEMORY_MIB", "200")
    with pytest.raises(BuildOutOfMemory, match="over its limit of 200 MiB"):
        run("held = bytearray(400 << 20); import time; time.sleep(60)")
    monkeypatch.setenv("ENGINEFARM_BUILD_TIMEOUT_S", "600")
    inside = "from enginefarm.settings import build_limits\nanswer = build_limits()"
    assert run(inside) == "BuildLimits(timeout_s=600.0, memory_bytes=209715200)"
    monkeypatch.setenv("ENGINEFARM_BUILD_TIMEOUT_S", "1.5")
    with pytest.raises(BuildTimeout, match=r"limit of 1\.5 s") as caught:
        run("import time; time.sleep(60)")
    assert "raise ENGINEFARM_BUILD_TIMEOUT_S" in caught.value.fix
    with pytest.raises(BuildTimeout) as caught:
        run("import time; time.sleep(60)", limits=Limits(0.5))
    assert "ENGINEFARM_BUILD_TIMEOUT_S" not in caught.value.fix  # that would not help


def test_a_limit_says_at_which_step_it_acted() -> None:
    script = (
        "from enginefarm import progress\n"
        "progress.report('export', 3, 4, 'run at every corner')\n"
        "held = bytearray(400 << 20); import time; time.sleep(60)"
    )
    with pytest.raises(BuildOutOfMemory) as caught:
        run(script, limits=Limits(60, 200 << 20))
    assert caught.value.why == "its last step was: export, run at every corner"


def test_on_a_machine_without_memory_the_largest_child_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the kernel does it: with less than a twentieth left, whatever the limit is."""
    monkeypatch.setattr(process, "memory_left_bytes", lambda: 100 << 20)
    monkeypatch.setattr(process, "largest_child_bytes", lambda: 0)  # another's may be on this one
    with pytest.raises(BuildOutOfMemory, match="when the machine had 100 MiB left, and was killed"):
        run("held = bytearray(100 << 20); import time; time.sleep(60)")
    monkeypatch.setattr(process, "largest_child_bytes", lambda: 1 << 40)  # another one is larger
    assert run("answer = 'done'; import time; time.sleep(0.3)") == "done"


def test_children_are_known_to_all_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "memory_left_bytes", lambda: 0)
    script = (
        "held = bytearray(300 << 20); from enginefarm.child import process\n"
        "answer = process.largest_child_bytes()"
    )
    monkeypatch.setattr(process, "largest_child_bytes", lambda: 1 << 40)
    assert int(run(script)) >= 300 << 20


def test_it_is_killed_when_the_process_is_asked_to_stop() -> None:
    timer = threading.Timer(0.5, CANCEL.set)
    started = time.monotonic()
    timer.start()
    try:
        with pytest.raises(BuildCancelled, match="the test: cancelled"):
            run("import time; time.sleep(60)")
    finally:
        timer.join()
        CANCEL.clear()
    assert time.monotonic() - started < 20


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    run(
        "import subprocess, pathlib\n"
        "child = subprocess.Popen(['sleep', '300'], stdout=subprocess.DEVNULL)\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))"
    )
    with suppress(psutil.NoSuchProcess):
        assert not alive([psutil.Process(int(note.read_text()))])


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = (
        f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); "
        "time.sleep(300)"
    )
    parent = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "from enginefarm.child.call import Child; from enginefarm.errors import BuildError; "
            f"Child('x', error=BuildError).call('builtins:exec', {script!r})",
        ]
    )
    deadline = time.monotonic() + 20
    while not (note.is_file() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = psutil.Process(int(note.read_text()))
    parent.kill()
    parent.wait()
    assert not alive([child])


def test_the_child_has_no_credentials_and_reads_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither in its own environment, nor in its parent's, nor in that of any other process."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    keeper = subprocess.Popen(["sleep", "60"])
    try:
        said = run(
            "import os, pathlib\nanswer = [os.environ.get('AWS_SECRET_ACCESS_KEY')]\n"
            f"for pid in (os.getppid(), {keeper.pid}):\n"
            "    where = pathlib.Path(f'/proc/{pid}/environ')\n"
            "    try: answer.append(b'hunter2' in where.read_bytes())\n"
            "    except OSError as error: answer.append(type(error).__name__)\n"
        )
    finally:
        keeper.kill()
        keeper.wait()
    assert said == "[None, 'PermissionError', 'PermissionError']"


def test_files_of_the_user_are_open_to_it(tmp_path: Path) -> None:
    """docs/security.md says so: a recipe's code is kept from the environment, not from files."""
    (tmp_path / "credentials").write_text("hunter2")
    (tmp_path / "credentials").chmod(0o600)
    assert run(f"answer = open({str(tmp_path / 'credentials')!r}).read()") == "hunter2"


def test_it_has_a_session_of_its_own_and_leaves_no_core() -> None:
    said = run(
        "import os, resource\n"
        "answer = [os.getsid(0) == os.getpid(), resource.getrlimit(resource.RLIMIT_CORE)]"
    )
    assert said == "[True, (0, 0)]"


@pytest.mark.parametrize("gives_way", [True, False])
def test_the_processor_goes_first_to_what_others_wait_for(gives_way: bool) -> None:
    """Also between sessions, where the kernel gives each of them the same share."""
    group = Path("/proc/self/autogroup")
    least = lifeline.LESS if gives_way else 0
    nice = run("import os; answer = os.nice(0)", gives_way=gives_way)
    assert int(nice) == os.nice(0) + least
    if group.exists():
        read = f"answer = open({str(group)!r}).read().split()[-1]"
        assert int(run(read, gives_way=gives_way)) == least


def test_progress_comes_through() -> None:
    seen: list[tuple[str, float, float | None, str]] = []
    run(
        "from enginefarm.progress import report\nreport('step', 1, 4, 'one')\n"
        "report('step', 4, 4, 'done')",
        progress=lambda step, done, total, note="": seen.append((step, done, total, note)),
    )
    assert seen == [("step", 1.0, 4.0, "one"), ("step", 4.0, 4.0, "done")]


class Count(Frozen):
    number: int


def double(request: str) -> str:
    return Count(number=2 * Count.model_validate_json(request).number).model_dump_json()


def test_a_model_goes_in_and_a_model_comes_out() -> None:
    child = Child("the test", error=KINDS)
    assert child.ask(f"{__name__}:double", Count(number=3), Count) == Count(number=6)


@pytest.mark.parametrize(
    "script",
    [
        "import os, pathlib; pathlib.Path(os.environ['TMPDIR'], 'result.json').write_text('{'); "
        "os._exit(0)",
        "import os, pathlib; "
        "pathlib.Path(os.environ['TMPDIR'], 'error.json').write_bytes(b'\\xff'); "
        "os._exit(1)",
        "import os, pathlib; pathlib.Path(os.environ['TMPDIR'], 'error.json').write_text("
        '\'{"kind": "__import__", "what": 3}\'); os._exit(1)',
    ],
)
def test_a_child_that_forges_its_files_is_one_error(script: str) -> None:
    child = Child("the test", error=KINDS)
    with pytest.raises(BuildError):
        child.ask("builtins:exec", Script(script), Count)


@pytest.mark.parametrize(
    "name", ["result.json", "error.json", "child.log"], ids=["answer", "error", "log"]
)
def test_a_file_of_any_size_is_not_read_into_memory(name: str) -> None:
    script = f"import os; open(name := os.path.join(os.environ['TMPDIR'], {name!r}), 'a').close()"
    with pytest.raises(BuildError):
        run(f"{script}; os.truncate(name, 1 << 40); os._exit(0)")


@pytest.mark.parametrize("instead", ["", "; os.mkfifo(name)", "; os.symlink('/dev/zero', name)"])
def test_a_child_whose_log_is_gone_or_is_no_file_is_one_error(instead: str) -> None:
    script = "import os; os.remove(name := os.path.join(os.environ['TMPDIR'], 'child.log'))"
    with pytest.raises(BuildError, match="status 3"):
        run(f"{script}{instead}; os._exit(3)")


WRITES = "import os, sys; fd = int(sys.argv[3]); os.set_blocking(fd, True); "


@pytest.mark.parametrize("line", ["'[' * 50_000", "'[\"x\", 1' + '0' * 400 + ', null, \"\"]'"])
def test_progress_that_says_nothing_is_passed_over(line: str) -> None:
    seen: list[object] = []
    said = f"os.write(fd, ({line} + chr(10)).encode()); answer = 1"
    assert run(WRITES + said, progress=lambda *told: seen.append(told)) == "1"
    assert seen == []


def test_a_line_of_progress_without_end_takes_no_memory() -> None:
    said = "[os.write(fd, b'x' * (1 << 16)) for _ in range(512)]; answer = 1"
    tracemalloc.start()
    try:
        assert run(WRITES + said) == "1"
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


class Script(Frozen):
    """Sent as it is: `exec` takes the text."""

    text: str

    def __init__(self, text: str) -> None:
        super().__init__(text=text)

    def model_dump_json(self, **_: Any) -> str:
        return self.text


SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"


@pytest.mark.parametrize(
    "script",
    [
        "open('/dev/full', 'w').write('x' * 100_000)",
        "raise RuntimeError('writing 3 MB: No space left on device')",
        f"{SMALL_FILES}open('large', 'w').write('x' * 100_000)",
        f"{SMALL_FILES}answer = 'x' * 100_000",
    ],
)
def test_a_full_disk_is_that_and_names_the_folder(tmp_path: Path, script: str) -> None:
    with pytest.raises(DiskFull, match="has no room") as full:
        run(script, folder=tmp_path)
    assert str(tmp_path) in full.value.what


def test_a_request_that_the_disk_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFull, match=f"the folder {tmp_path} has no room"):
        run("answer = 1", folder=tmp_path)
