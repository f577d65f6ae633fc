"""Text that would be code where it is not escaped, in every field that takes text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError
from sample_manifest import CALIBRATED, NOON, make_manifest
from sample_rows import NIGHT, make_row

from enginefarm.documents.host import Host
from enginefarm.documents.layers import Layer, Layers
from enginefarm.pulling.fleet import HostState, HostStatus
from enginefarm.report import assemble
from enginefarm.report.model import ReportData
from enginefarm.tables.from_manifest import not_built, rows_from_manifest
from enginefarm.tables.layer_diff import diff

TEXTS = (
    "<script>window.hacked=1</script>",
    "</script><img src=x onerror=window.hacked=1>",
    "\"' onmouseover='window.hacked=1' autofocus onfocus=\"window.hacked=1",
    "</title></style></textarea><svg onload=window.hacked=1>",
    "javascript:window.hacked=1",
    "<!--<script>&lt;script&gt;&#60;b&#62;{{ 7 * 7 }}{% raw %}${1}`",
    "]]></svg><iframe srcdoc='<script>parent.hacked=1</script>'>",
    "‮\x00\x1b]8;;javascript:window.hacked=1\x07",
)


def poisoned(value: Any, text: str) -> Any:
    """The value with that text in each string of it, as far as its fields take any text.

    Values of enumerations, names, digests and dates stay: pydantic refuses this text there.
    """
    if isinstance(value, str):
        return text
    if isinstance(value, tuple | list):
        return type(value)(poisoned(one, text) for one in value)
    if isinstance(value, dict):
        return {key: poisoned(one, text) for key, one in value.items()}
    if not isinstance(value, BaseModel):
        return value
    for name in type(value).model_fields:
        fields = {field: getattr(value, field) for field in type(value).model_fields}
        try:
            value = type(value).model_validate(
                fields | {name: poisoned(getattr(value, name), text)}, strict=False
            )
        except ValidationError:
            continue
    return value


SLOWER = "ef" * 32


def report(text: str) -> ReportData:
    """A report with every part that a page can have."""
    manifest = make_manifest(engine=b"bytes")
    precision = manifest.spec.precision.model_copy(update={"calibration": CALIBRATED})
    spec = manifest.spec.model_copy(update={"precision": precision})
    manifest = poisoned(manifest.model_copy(update={"spec": spec, "notes": ("n",)}), text)
    layer = Layer(name="a", kind="k", nodes=("n",), precision="FP16", tactic="t", ms=1.0)
    layers = poisoned(Layers(layers=(layer,)), text)
    other = poisoned(Layers(layers=(layer, layer.model_copy(update={"ms": 2.0}))), text)
    known = {"relative_l2_max": 0.01, "cosine_min": 0.9, "size_bytes": 9, "build_seconds": 30.0}
    measured = [
        make_row(night, precision=precision, latency_ms_median=ms, **known)
        for night in range(8)
        for precision, ms in (("fp16", 2.0), ("int8", 1.0), ("fp32", 4.0))
    ]
    slow = make_row(9, latency_ms_median=3.0, spec_digest=SLOWER, engine_digest=SLOWER, **known)
    failed = not_built(
        recipe="minilm",
        gpu="l4",
        precision="fp16",
        toolchain="tensorrt",
        outcome="failed",
        reason="r",
        night=NIGHT,
        writer="w",
    )
    on_cpu = make_row(gpu=None, runtime="pytorch", engine_digest=None, spec_digest=None)
    rows = [poisoned(row, text) for row in (*measured, slow, failed, on_cpu)]
    data = assemble([*rows, *rows_from_manifest(manifest)], title=text, store=text, notes=[text])
    host = Host(gpu_name="x", compute_capability="7.5", driver="1.1", os="linux", arch="x86_64")
    state = HostState(
        name="h", recipe="m", channel="c", runs="t4/fp16", spec="s", host=host, since=NOON
    )
    lines = [line for model in data.models for line in model.lines if line.regressed]
    assert lines, "a slower line is part of the page"
    return replace(
        data,
        layers={line.engines: diff(layers, other) for line in lines},
        fleet=(
            poisoned(HostStatus(state=state, heard=NOON, verdict="lags", words="w"), text[:16]),
        ),
        manifests={manifest.spec_digest: manifest},
        engine_layers={manifest.spec_digest: layers, "ab" * 32: text},
    )
