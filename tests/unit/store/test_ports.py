"""Another user of the machine cannot keep the embedded store from starting."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from enginefarm.store import ports


@pytest.fixture(autouse=True)
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sockets"
    folder.mkdir()
    monkeypatch.setattr(ports, "SOCKETS", folder)
    return folder


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
