"""A job for the farm's own road, of a graph and its reference as they are."""

from __future__ import annotations

from pathlib import Path

from enginefarm.building.job import Job
from enginefarm.documents.comparing import OutputComparison
from enginefarm.documents.manifest import GraphVerification
from enginefarm.documents.spec import BuildSpec, OnnxRef
from enginefarm.planning.graphs import PreparedGraph
from enginefarm.store.site import Site


def job(site: Site, spec: BuildSpec, onnx: Path, reference: Path) -> Job:
    """spec: its onnx_digest is made that of the graph."""
    graph = site.store.put_blob(onnx)
    exact = OutputComparison(output="y", cosine=1, max_abs=0, relative_l2=0)
    return Job(
        recipe="model",
        spec=spec.model_copy(update={"onnx_digest": graph.digest}),
        prepared=PreparedGraph(
            use=spec.precision,
            graph=OnnxRef(model=graph, opset=17),
            reference=site.store.put_blob(reference),
            verification=GraphVerification(samples=2, runtime="onnxruntime", outputs=(exact,)),
            details={},
            seconds=0,
            cached=False,
        ),
    )
