"""A real HTTP receiver of notifications on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import NamedTuple


class Received(NamedTuple):
    """Where notifications go, and those that arrived."""

    url: str
    arrived: list[dict[str, str]]


@contextmanager
def receiver() -> Iterator[Received]:
    arrived: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            arrived.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Received(f"http://127.0.0.1:{server.server_port}/hook", arrived)
    finally:
        server.shutdown()
