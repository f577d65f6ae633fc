"""Another user of the machine cannot keep the embedded store from starting."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginefarm.store import ports


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # The path of a socket ends at 107 characters, and tmp_path may be long.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(ports, "SOCKETS", Path(folder))
        yield Path(folder)


def test_ports_stay_while_they_are_free(tmp_path: Path) -> None:
    first = ports.ports_of(tmp_path)
    with socket.socket(socket.AF_UNIX) as left:  # by a store that was killed
        left.bind(str(ports.sockets_of(first)[0]))
    assert ports.ports_of(tmp_path) == first


def test_a_port_that_somebody_took_is_replaced(tmp_path: Path) -> None:
    first = ports.ports_of(tmp_path)
    with socket.create_server(("127.0.0.1", first[1])):
        assert first[1] not in ports.ports_of(tmp_path)


@pytest.mark.parametrize("number", range(4))
def test_a_name_in_tmp_that_somebody_took_is_replaced(tmp_path: Path, number: int) -> None:
    first = ports.ports_of(tmp_path)
    taken = ports.sockets_of(first)[number]
    taken.write_text("not a socket")
    assert taken not in ports.sockets_of(ports.ports_of(tmp_path))
