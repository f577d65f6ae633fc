"""A running Triton: which versions it serves, loading and unloading, and inference, over HTTP.

The KServe protocol (version 2), its extension for model repositories and its extension for binary
tensors. Why this is not a client library: docs/decisions/0245.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import quote, urlsplit

import urllib3

from enginefarm.documents.builder import DTYPES
from enginefarm.errors import TritonError

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Array, Arrays


LENGTH = "Inference-Header-Content-Length"
CONNECT_S = 5.0
INFER_S = 120.0
LOAD_S = 600.0
LIMIT_BYTES = 1 << 31
"""Of one answer: more than the outputs of any engine's request."""
UNREADABLE = (AttributeError, KeyError, TypeError, ValueError, OverflowError)
"""What JSON raises that is not as the protocol has it."""
NOT_EXPLICIT = "explicit model load / unload is not allowed"
"""What Triton answers in its other two modes of model control."""

BF16 = DTYPES["bfloat16"].triton
DATATYPES = {row.triton: name for name, row in DTYPES.items() if row.triton != BF16}
"""Triton's name of a type -> numpy's, which has no bfloat16."""


class Tensor(NamedTuple):
    """An input or output as Triton tells it; -1 is a dynamic dim."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelTensors(NamedTuple):
    """A version as it is served. Dims include the batch where Triton batches."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class InferResult(NamedTuple):
    """outputs by name; version: which one answered."""

    outputs: Arrays
    version: int


class TritonServer:
    """One server. Every failure is a TritonError that names the server and the request."""

    def __init__(self, url: str) -> None:
        given = url if "//" in url else f"http://{url}"
        try:
            parts = urlsplit(given)
            port = parts.port
        except ValueError:  # no port, or half of the brackets of an IPv6 address
            parts, port = urlsplit(""), -1
        fit = parts.scheme in ("http", "https") and parts.hostname and port != -1
        if not fit or parts.query or parts.fragment:
            raise TritonError(
                f"triton: {url!r} is not the address of a server",
                fix="write http://HOST:PORT; Triton's HTTP port is 8000 by default",
            )
        self.name = f"{parts.hostname}:{port}" if port else str(parts.hostname)
        self._base = f"{given.rstrip('/')}/v2"
        self._pool = urllib3.PoolManager(retries=False)

    def require_explicit(self, absent: str) -> None:
        """Whether models can be loaded and unloaded, asked by unloading one that is not loaded.

        Raises: TritonError where the server is in another mode, or has no repository API.
        """
        try:
            self.unload(absent)
        except TritonError as error:
            if NOT_EXPLICIT not in error.why:
                raise
            raise TritonError(
                f"triton: {self.name} does not allow models to be loaded and unloaded",
                why="it is not in explicit mode",
                fix="start it with --model-control-mode=explicit --load-model=MODEL",
            ) from error

    def versions(self, model: str) -> tuple[int, ...]:
        """The versions that it serves now, lowest first."""
        states = self._states(model)
        return tuple(sorted(version for version, state in states.items() if state == "READY"))

    def is_changing(self, model: str) -> bool:
        """Whether a version is being loaded or unloaded."""
        return not {"LOADING", "UNLOADING"}.isdisjoint(self._states(model).values())

    def _states(self, model: str) -> dict[int, str]:
        with self._parsing("its list of models"):
            rows = self._json("POST", "/repository/index", {})
            return {
                int(row["version"]): str(row.get("state", ""))
                for row in cast("list[Any]", rows or [])
                if row.get("name") == model and str(row.get("version", "")).isdecimal()
            }

    def model(self, model: str, version: int) -> ModelTensors:
        with self._parsing(f"what it says about {model}"):
            answer = self._json("GET", f"/models/{quote(model)}/versions/{version}")
            inputs, outputs = (
                tuple(
                    Tensor(str(one["name"]), str(one["datatype"]), tuple(map(int, one["shape"])))
                    for one in answer.get(kind, ())
                )
                for kind in ("inputs", "outputs")
            )
        return ModelTensors(inputs, outputs)

    def load(self, model: str) -> None:
        """Loads or reloads; returns when it is served. A reload that fails changes nothing."""
        self._json("POST", f"/repository/models/{quote(model)}/load", {}, timeout_s=LOAD_S)

    def unload(self, model: str) -> None:
        """No error for a model that is not loaded."""
        self._json("POST", f"/repository/models/{quote(model)}/unload", {}, timeout_s=LOAD_S)

    def infer(
        self, model: str, inputs: Mapping[str, Array], version: int | None = None
    ) -> InferResult:
        """One request. version None: as clients ask, the server picks.

        inputs: arrays of the model's own types, with every dim that Triton counts.
        """
        bodies = {name: array.tobytes() for name, array in inputs.items()}
        header = json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "shape": list(array.shape),
                        "datatype": _datatype(array),
                        "parameters": {"binary_data_size": len(bodies[name])},
                    }
                    for name, array in inputs.items()
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        which = "" if version is None else f"/versions/{version}"
        answer, rest = self._request(
            "POST",
            f"/models/{quote(model)}{which}/infer",
            header + b"".join(bodies.values()),
            {LENGTH: str(len(header)), "Content-Type": "application/octet-stream"},
            INFER_S,
        )
        return _answer(answer, rest, f"triton: {self.name}: {model}")

    @contextmanager
    def _parsing(self, what: str) -> Generator[None]:
        """Raises: TritonError for JSON that is not the protocol's."""
        try:
            yield
        except UNREADABLE as error:
            raise TritonError(
                f"triton: {self.name}: {what} cannot be read",
                why=_readable(error),
                fix="name the HTTP port of Triton, 8000 by default",
            ) from error

    def _json(self, verb: str, path: str, body: Any = None, timeout_s: float = INFER_S) -> Any:
        data = None if body is None else json.dumps(body).encode()
        return self._request(verb, path, data, {"Content-Type": "application/json"}, timeout_s)[0]

    def _request(
        self,
        verb: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        timeout_s: float,
    ) -> tuple[Any, bytes]:
        """The JSON of an answer, and the bytes after it."""
        what = f"triton: {self.name}: {verb} /v2{path}"
        timeout = urllib3.Timeout(connect=CONNECT_S, read=timeout_s)
        try:
            answer = self._pool.request(
                verb,
                self._base + path,
                body=body,
                headers=headers,
                timeout=timeout,
                preload_content=False,
                decode_content=False,  # nothing packed was asked for
            )
            data = answer.read(LIMIT_BYTES + 1)
            if len(data) > LIMIT_BYTES:
                answer.close()
                raise TritonError(f"{what}: the answer is longer than {LIMIT_BYTES} bytes")
            answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise TritonError(
                f"{what} got no answer",
                why=_readable(error),
                fix="check the address; Triton's HTTP port is 8000 by default, and it answers "
                "GET /v2/health/ready",
            ) from error
        if answer.status != 200:
            raise TritonError(
                f"{what} was refused ({answer.status})",
                why=_error_text(data),
                fix="Triton's log says more",
            )
        size = answer.headers.get(LENGTH)
        split = int(size) if size and re.fullmatch(r"[0-9]{1,18}", size) else len(data)
        if not data:
            return {}, b""
        try:
            return json.loads(data[:split]), data[split:]
        except (ValueError, RecursionError) as error:
            raise TritonError(
                f"{what} was answered by something other than Triton",
                why="the answer is not JSON",
                fix="name the HTTP port of Triton, 8000 by default",
            ) from error


def _datatype(array: Array) -> str:
    name = array.dtype.name
    return next((known for known, plain in DATATYPES.items() if plain == name), BF16)


def _answer(answer: Any, rest: bytes, what: str) -> InferResult:
    import numpy as np

    outputs: Arrays = {}
    offset = 0
    try:
        for one in answer["outputs"]:
            shape = tuple(map(int, one["shape"]))
            datatype = str(one["datatype"])
            if "data" in one:
                flat = np.asarray(one["data"], DATATYPES.get(datatype, "float32"))
            else:
                size = int(one["parameters"]["binary_data_size"])
                flat = _flat(rest[offset : offset + size], datatype)
                offset += size
            if flat.size != math.prod(shape):
                raise ValueError(f"{one['name']} has {flat.size} values for the shape {shape}")
            outputs[str(one["name"])] = flat.reshape(shape)
        return InferResult(outputs, int(answer["model_version"]))
    except UNREADABLE as error:
        raise TritonError(f"{what}: its answer cannot be read", why=_readable(error)) from error


def _flat(data: bytes, datatype: str) -> Array:
    """BF16 comes as the FP32 of the same value."""
    import numpy as np

    if datatype == BF16:
        high = np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)
        return high.view(np.float32)
    return np.frombuffer(data, np.dtype(DATATYPES[datatype]))


def _readable(error: Exception) -> str:
    """Without the address of the object that urllib3 prints."""
    return re.sub(r"<[^<>]*>:? ?", "", str(error)) or type(error).__name__


def _error_text(body: bytes) -> str:
    """Triton's words for an error."""
    try:
        return str(json.loads(body)["error"])[:2000]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:300].decode("utf-8", "replace")
