"""An HTTP proxy in front of a real S3 server that does what networks do.

It forwards requests unchanged (signatures stay valid: the Host header is the proxy's), and
spoils answers as `faults` says, by a seeded generator.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("cut", "truncated", "500", "503", "slow", "flipped", "reset")
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class FaultyProxy:
    """chance: of a fault, in each answer. faults: which. stale: listings are replayed."""

    def __init__(self, upstream: str, seed: int = 1) -> None:
        self.upstream = urlsplit(upstream)
        self.chance = 0.0
        self.faults: tuple[str, ...] = FAULTS
        self.stale = False
        self.done: Counter[str] = Counter()
        self.served_bytes = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.request_queue_size = 256
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _choose(self) -> str:
        with self._lock:
            if self._random.random() >= self.chance:
                return "none"
            fault = self._random.choice(self.faults)
            self.done[fault] += 1
            return fault

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length", 0))
        body = handler.rfile.read(length)
        fault = self._choose()
        if fault in ("500", "503"):
            self._answer(handler, int(fault), [], b"")
            return
        if fault == "reset":
            handler.close_connection = True
            return
        listing = handler.command == "GET" and "list-type=2" in handler.path
        if listing and self.stale and handler.path in self._listings:
            self._answer(handler, *self._listings[handler.path])
            return
        status, headers, data = self._forward(handler, body)
        if listing:
            self._listings[handler.path] = (status, headers, data)
        self._answer(handler, status, headers, data, fault)

    def _forward(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(
            self.upstream.hostname or "", self.upstream.port, timeout=60
        )
        try:
            connection.putrequest(
                handler.command, handler.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in handler.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = answer.read()
            headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in HOP]
            if handler.command == "HEAD":
                headers.append(("Content-Length", answer.getheader("Content-Length", "0")))
            return answer.status, headers, data
        finally:
            connection.close()

    def _answer(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        data: bytes,
        fault: str = "none",
    ) -> None:
        try:
            handler.send_response(status)
            for name, value in headers:
                handler.send_header(name, value)
            if handler.command != "HEAD":
                handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            self._send(handler, data, fault)
        except OSError:
            handler.close_connection = True

    def _send(self, handler: BaseHTTPRequestHandler, data: bytes, fault: str) -> None:
        with self._lock:
            at = self._random.randrange(len(data)) if data else 0
        if fault in ("cut", "truncated"):
            data = data[:at]
            handler.close_connection = True
        elif fault == "flipped" and data:
            data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        elif fault == "slow":
            handler.wfile.write(data[:at])
            handler.wfile.flush()
            time.sleep(0.2)
            data = data[at:]
        handler.wfile.write(data)
        with self._lock:
            self.served_bytes += len(data)
        if fault == "cut":
            handler.connection.shutdown(2)
