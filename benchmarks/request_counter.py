"""Counts the HTTP requests that pass between a worker, with its runs, and the Prefect server."""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress

REQUEST = re.compile(rb"^(GET|POST|PUT|PATCH|DELETE) /api(/\S*) HTTP/1\.1\r\n")
IDENTITY = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@contextmanager
def counting(port: int) -> Generator[tuple[str, Counter[str]]]:
    """(URL of the API, what was asked through it) of a proxy before the server at `port`."""
    counts: Counter[str] = Counter()
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=relay, args=(source, target), daemon=True).start()

    def relay(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(1 << 16):
                # A client sends the head of a request at the start of a write.
                found = REQUEST.match(chunk)
                if found:
                    path = IDENTITY.sub("ID", found[2].decode().partition("?")[0])
                    counts[f"{found[1].decode()} {path}"] += 1
                target.sendall(chunk)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api", counts
    finally:
        listener.close()
