"""Text that others wrote reaches the terminal as text: no control bytes, no turned direction, and
none of rich's markup."""

from __future__ import annotations

import io
import json
import logging
import sys

import click
import pytest
from sample_manifest import make_manifest

from enginefarm import cli
from enginefarm.cli.progress_view import watched
from enginefarm.cli.pull import print_selection
from enginefarm.cli.screen import Screen
from enginefarm.cli.tables import print_json, print_table
from enginefarm.documents.host import Host
from enginefarm.documents.manifest import DeviceVerification
from enginefarm.progress import report
from enginefarm.pulling.select import select
from enginefarm.store.budgets import Budgets

EVIL = "a\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.exe\u2066 b\rc"
SHOWN = "a\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\u202egnp.exe\\u2066 b\\rc"
MARKUP = "[red]no[/] [/not-opened] [link=https://evil.example]here[/link]"
UNSAFE = ("\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\r")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_shows_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(MARKUP, ("one", "two"), [(EVIL, MARKUP), (MARKUP, EVIL)], ["green", ""])
    said = capsys.readouterr().out
    assert said.count(SHOWN) == 2
    assert said.count("[/not-opened]") == 3
    assert not [one for one in UNSAFE if one in said]


def test_json_has_the_same_values_and_no_unsafe_character(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({EVIL: [EVIL, "é"]})
    said = capsys.readouterr().out
    assert json.loads(said) == {EVIL: [EVIL, "é"]}
    assert not [one for one in UNSAFE if one in said]
    assert "é" in said


def test_what_commands_print_and_log_is_made_safe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(**_: object) -> int:
        click.echo(EVIL)
        click.echo(f"note: {EVIL}", err=True)
        print(EVIL, file=sys.stderr)
        handler = logging.StreamHandler()
        handler.emit(logging.LogRecord("x", logging.WARNING, "", 0, EVIL, None, None))
        print("\x1b[31mred\x1b[0m", end="\r\n")
        return 0

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # put back afterwards
    monkeypatch.setattr(cli.cli, "main", main)
    with pytest.raises(SystemExit):
        cli.main(["list"])
    said = capsys.readouterr()
    clicked = SHOWN.replace("\\x1b[2J", "")  # click leaves that out where there is no terminal
    assert said.out == f"{clicked}\n\x1b[31mred\x1b[0m\r\n"
    assert said.err == f"note: {clicked}\n{SHOWN}\n{SHOWN}\n"


def test_progress_on_a_terminal_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Screen(terminal))
    with watched():
        report(f"fsck {MARKUP}", 1, 2, MARKUP)
        report(f"fsck {EVIL}", 1, 2, EVIL)
    said = terminal.getvalue()
    assert "[/not-opened]" in said
    assert "\x1b]0;" not in said
    assert "\u202e" not in said
    assert "\x1b[2K" in said, "and the progress itself moves the cursor"


def test_why_an_engine_is_refused_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    failed = make_manifest().model_copy(
        update={"device_verification": DeviceVerification(status="failed", reason=MARKUP + EVIL)}
    )
    host = Host(gpu="t4", os="linux", arch="x86_64")
    print_selection(select([failed], host, None, Budgets()), host)
    said = "".join(capsys.readouterr().err.split())
    assert "[/not-opened]" in said
    assert "https://evil.example" in said
    assert not [one for one in UNSAFE if one in said]


def test_a_long_title_is_one_line_and_no_row_is_no_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    title = "a title of many words " * 6
    print_table(title, ("a", "b"), [("1", "2")])
    assert capsys.readouterr().out.splitlines()[0].strip() == title.strip()
    print_table("No rows", ("header", "other"), [])
    assert capsys.readouterr().out.strip() == "No rows"
