"""A presigned URL is a credential: no log and no message has it, whatever the network does."""

from __future__ import annotations

import logging
import socket
import threading
import time

import pytest

from enginefarm.errors import EnginefarmError, StoreUnavailable
from enginefarm.store.sources import read_url

SECRET = "X-Amz-Signature=0123456789abcdef"
CLOSED = b""
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
GONE = b"HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class Server:
    """Answers requests one by one; counts them."""

    def __init__(self, answers: list[bytes]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.asked = 0
        self.answers = answers
        threading.Thread(target=self._serve, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/bucket/key?{SECRET}"

    def _serve(self) -> None:
        for answer in self.answers:
            connection, _ = self.listener.accept()
            with connection:
                connection.recv(4096)
                self.asked += 1
                connection.sendall(answer)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(seconds: float) -> None:
        del seconds

    monkeypatch.setattr(time, "sleep", at_once)


@pytest.mark.parametrize("failure", [CLOSED, BUSY, GONE])
def test_no_log_and_no_error_has_the_url(failure: bytes, caplog: pytest.LogCaptureFixture) -> None:
    server = Server([failure] * 4)
    with caplog.at_level(logging.INFO), pytest.raises(EnginefarmError) as refused:
        read_url(server.url, "manifest")
    assert SECRET not in caplog.text
    assert SECRET not in str(refused.value)
    assert server.asked == (1 if failure == GONE else 4)


def test_what_passes_is_ridden_out() -> None:
    assert read_url(Server([CLOSED, BUSY, CLOSED, GOOD]).url, "manifest") == b"{}"
    with pytest.raises(StoreUnavailable):
        read_url(Server([CLOSED, BUSY, CLOSED, BUSY]).url, "manifest")
