"""Another user of the machine cannot keep the embedded store from starting."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginefarm.store import weed


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # The path of a socket ends at 107 characters, and tmp_path may be long.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(weed, "SOCKETS", Path(folder))
        yield Path(folder)


def test_ports_stay_while_they_are_free(tmp_path: Path) -> None:
    first = weed.ports_of(tmp_path)
    with socket.socket(socket.AF_UNIX) as left:  # by a store that was killed
        left.bind(str(weed.sockets_of(first)[0]))
    assert weed.ports_of(tmp_path) == first


def test_no_port_is_one_that_an_outgoing_connection_may_be_given() -> None:
    low, high = map(int, weed.EPHEMERAL.read_text("utf-8").split())
    found = weed.free_ports(200)
    assert len(set(found)) == 200
    assert not [port for port in found if low <= port <= high]


@pytest.mark.parametrize(
    ("kernels", "first", "beyond"),
    [
        ("32768\t60999\n", 10_000, 32_768),
        ("1024 40000", 40_001, 55_536),
        ("1024 65535", 10_000, 55_536),
        ("10500 65535", 10_000, 55_536),
    ],
)
def test_ports_lie_beside_the_range_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str, first: int, beyond: int
) -> None:
    monkeypatch.setattr(weed, "EPHEMERAL", tmp_path / "range")
    (tmp_path / "range").write_text(kernels)
    assert all(first <= port < beyond for port in weed.free_ports(100))


def test_a_port_that_somebody_took_is_replaced(tmp_path: Path) -> None:
    first = weed.ports_of(tmp_path)
    with socket.create_server(("127.0.0.1", first[1])):
        assert first[1] not in weed.ports_of(tmp_path)


@pytest.mark.parametrize("number", range(4))
def test_a_name_in_tmp_that_somebody_took_is_replaced(tmp_path: Path, number: int) -> None:
    first = weed.ports_of(tmp_path)
    taken = weed.sockets_of(first)[number]
    taken.write_text("not a socket")
    assert taken not in weed.sockets_of(weed.ports_of(tmp_path))
