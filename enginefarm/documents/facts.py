"""What a manifest says, as lines for people: a label and a text each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import ToolUse

DIGITS = 12


class Line(NamedTuple):
    label: str
    text: str


def lineage(manifest: Manifest) -> Iterator[Line]:
    """Where an engine comes from, and where it was checked."""
    spec, environment = manifest.spec, manifest.environment
    yield Line("CUDA", f"{spec.toolchain.cuda}, {spec.toolchain.os}/{spec.toolchain.arch}")
    yield Line("model", f"{spec.onnx_digest[:DIGITS]}, {_tool(spec.exporter)}")
    yield Line("slimmed by", _tool(spec.slimmer))
    tools = ", ".join(map(_tool, spec.precision.tools))
    yield Line("precision by", tools or "no conversion")
    calibration = spec.precision.calibration
    if calibration is not None:
        yield Line(
            "calibrated on",
            f"{calibration.batches} × {calibration.batch_size} samples, {calibration.method}, "
            f"data {calibration.data_digest[:DIGITS]}",
        )
    yield Line("graph as built", f"{manifest.graph.digest[:DIGITS]}, opset {manifest.graph.opset}")
    carried = manifest.build.compute_capabilities or (spec.gpu.compute_capability,)
    yield Line("runs on", f"compute capability {', '.join(carried)}")
    for profile in spec.profiles:
        shapes = (f"{name} {one.min} {one.opt} {one.max}" for name, one in profile.shapes.items())
        yield Line(f"profile {profile.name}", "; ".join(shapes))
    built = environment.gpu_name or f"{environment.os}/{environment.arch} without a GPU"
    yield Line("built", f"{manifest.created_at:%Y-%m-%d %H:%M} UTC, {built}")
    verified = manifest.verification
    data = "seeded random inputs" if verified.random_data else "held-out data"
    yield Line("graph verified on", f"{verified.samples} samples of {data}, {verified.runtime}")
    device = manifest.device_verification
    yield Line("engine verified on", f"{device.gpu or 'no GPU yet'}: {device.status}")
    for note in (*manifest.notes, *verified.not_checked):
        yield Line("note", note)


def accuracy(manifest: Manifest) -> Iterator[Line]:
    """The figures of each output, and of its worst parts; then what stays in more bits, and why."""
    for output in manifest.verification.outputs:
        top1 = output.top1_agreement
        yield Line(
            f"output {output.output}",
            f"cosine {output.cosine:.5f}, relative L2 {output.relative_l2:.2g}"
            + (f", top-1 the same in {100 * top1:.1f} %" if top1 is not None else ""),
        )
        for part in output.parts:
            text = f"cosine {part.cosine:.5f}, relative L2 {part.relative_l2:.2g}"
            yield Line("  its worst part", f"{part.where}: {text}")
    if manifest.verification.operators:
        yield Line("operators", manifest.verification.operators)
    for node in kept_wide(manifest):
        gain = node.get("gain_db")
        gained = f", which gains {gain:.1f} dB" if isinstance(gain, int | float) else ""
        yield Line(
            "kept in more bits", f"{node['node']} ({node['op_type']}): {node['reason']}{gained}"
        )


def kept_wide(manifest: Manifest) -> list[dict[str, Any]]:
    """What the precision listed; nothing of manifests that are older than the list."""
    precision = manifest.build.details.get("precision")
    kept = precision.get("kept_wide") if isinstance(precision, dict) else None
    return [
        one
        for one in cast(list[Any], kept if isinstance(kept, list) else [])
        if isinstance(one, dict) and {"node", "op_type", "reason"} <= one.keys()
    ]


def _tool(tool: ToolUse) -> str:
    return f"{tool.name} {tool.version}"
