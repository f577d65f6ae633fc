"""A small server that speaks Triton's protocol over a repository. It is a stub: no model runs.

Its plans are JSON: {"scale": 1.0} answers y = scale * x. What it does about versions was seen with
a real Triton 2.51 (docs/decisions/0245): a request without a version gets the highest one that is
loaded, and a reload that fails leaves the model as it was.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = "Inference-Header-Content-Length"
REFUSED = {"error": "explicit model load / unload is not allowed if polling is enabled"}


class Stub:
    """explicit: its mode. delay_ms: of the n-th request to a model, on the stub's own clock."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.explicit = True
        self.loaded: dict[str, dict[int, dict[str, Any]]] = {}
        self.answered: list[tuple[str, int | None, int]] = []
        self.delay_ms: Callable[[str, int], float] = lambda model, nth: 1.0
        self.now_s = 0.0
        self.url = ""

    def clock(self) -> float:
        return self.now_s

    def load(self, model: str) -> tuple[int, Any]:
        folder = self.repository / model
        if not (folder / "config.pbtxt").exists():
            return 500, {"error": f"failed to load '{model}', failed to poll from model repository"}
        config = (folder / "config.pbtxt").read_text()
        named = re.search(r'^name: "(.*)"', config, re.MULTILINE)
        if named is None or named[1] != model:
            return 400, {"error": f"the name in config.pbtxt is not {model}"}
        policy = re.search(r"version_policy \{ specific \{ versions: \[ (\d+) \]", config)
        there = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        versions = [int(policy[1])] if policy else there[-1:]
        plan = re.search(r'value: "([^"]*\.plan)"', config)
        found: dict[int, dict[str, Any]] = {}
        for version in versions:
            path = folder / str(version) / (plan[1] if plan else "model.plan")
            if not path.exists():
                return 400, {"error": f"{path} is not there"}
            found[version] = json.loads(path.read_bytes())
            if model in found[version].get("fails_as", ()):
                return 400, {"error": f"load failed for model '{model}': version {version}: no"}
        self.loaded[model] = found
        return 200, {}

    def infer(self, model: str, version: int | None, body: bytes, size: int) -> tuple[int, Any]:
        served = self.loaded.get(model, {})
        chosen = max(served, default=0) if version is None else version
        if chosen not in served:
            return 404, {"error": f"Request for unknown model: '{model}' is not found"}
        plan = served[chosen]
        self.answered.append((model, version, chosen))
        nth = sum(one[0] == model for one in self.answered)
        self.now_s += self.delay_ms(model, nth) / 1000
        told = json.loads(body[:size])
        (given,) = told["inputs"]
        x = np.frombuffer(body[size:], np.float32).reshape(given["shape"])
        if list(x.shape[1:]) != plan.get("dims", [3]):
            return 400, {"error": f"unexpected shape for input 'x' for model '{model}'"}
        scale = plan.get("scale_as", {}).get(model, plan["scale"])
        y = (x * np.float32(scale)).astype(np.float32)
        output = {"name": plan.get("output", "y"), "datatype": "FP32", "shape": list(y.shape)}
        output["parameters"] = {"binary_data_size": y.nbytes}
        head = {"model_name": model, "model_version": str(chosen), "outputs": [output]}
        return 200, (json.dumps(head).encode(), y.tobytes())

    def metadata(self, model: str, version: int) -> tuple[int, Any]:
        plan = self.loaded.get(model, {}).get(version)
        if plan is None:
            return 404, {"error": "unknown model"}
        shape = [-1, *plan.get("dims", [3])]
        told = {"datatype": "FP32", "shape": shape}
        outputs = [{"name": plan.get("output", "y"), **told}]
        return 200, {"name": model, "inputs": [{"name": "x", **told}], "outputs": outputs}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stub: Stub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = re.fullmatch(r"/v2/models/([^/]+)/versions/(\d+)", self.path)
        self._answer(*(self.stub.metadata(asked[1], int(asked[2])) if asked else (404, {})))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        moved = re.fullmatch(r"/v2/repository/models/([^/]+)/(load|unload)", self.path)
        asked = re.fullmatch(r"/v2/models/([^/]+)(?:/versions/(\d+))?/infer", self.path)
        if self.path == "/v2/repository/index":
            rows = [
                {"name": model, "version": str(version), "state": "READY"}
                for model, versions in self.stub.loaded.items()
                for version in versions
            ]
            self._answer(200, rows)
        elif moved and not self.stub.explicit:
            self._answer(503, REFUSED)
        elif moved and moved[2] == "load":
            self._answer(*self.stub.load(moved[1]))
        elif moved:
            self.stub.loaded.pop(moved[1], None)
            self._answer(200, b"")
        elif asked:
            version = int(asked[2]) if asked[2] else None
            self._answer(*self.stub.infer(asked[1], version, body, int(self.headers[LENGTH])))
        else:
            self._answer(404, {"error": "not found"})

    def _answer(self, status: int, said: Any) -> None:
        head, rest = said if isinstance(said, tuple) else (said, b"")
        head = head if isinstance(head, bytes) else json.dumps(head).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(head) + len(rest)))
        if rest:
            self.send_header(LENGTH, str(len(head)))
        self.end_headers()
        self.wfile.write(head + rest)


@contextmanager
def serving(repository: Path) -> Iterator[Stub]:
    """The stub on a port of its own."""
    stub = Stub(repository)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"stub": stub}))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
