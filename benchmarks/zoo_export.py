"""Writes the models of the zoo as ONNX files, for a machine with neither network nor PyTorch:

    python -m benchmarks.zoo_export FOLDER [--only EXPRESSION] [--scratch .zoo]

FOLDER/NAME/model.onnx is the model's own file, or what the product's export makes of a PyTorch
model; `benchmarks.zoo --parts FOLDER` and `tests/gpu/judge_zoo.py` build it there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import nodes, zoo
from benchmarks.zoo_judge import Figures
from enginefarm.errors import EnginefarmError
from enginefarm.graph.exporting import export, torch_export
from enginefarm.graph.samples import feeds
from enginefarm.recipes import file as recipe_file


def written(name: str, row: zoo.Row, scratch: Path, dest: Path) -> str:
    """What was written; a PyTorch model with how far its graph is from it, as relative L2.

    Raises: EnginefarmError where the model cannot be exported.
    """
    folder = zoo.placed(name, row, scratch, None)
    dest.parent.mkdir(parents=True, exist_ok=True)
    if "model" not in row:
        shutil.copyfile(folder / "model.onnx", dest)
        return f"{dest.stat().st_size:,} bytes"
    onnx: Any = import_module("onnx")
    torch: Any = import_module("torch")
    os.chdir(folder)
    recipe = recipe_file.load(folder / "recipe.yaml")
    with tempfile.TemporaryDirectory(prefix="zoo-") as work:
        model: Any = export.load(recipe, Path(work)).model
        sample = feeds.sample(recipe)
        graph, _ = torch_export.export(model, recipe, sample)
        onnx.save(graph, dest)  # one file, its weights in it
    session = nodes.plain(dest)
    given = {one.name: sample[one.name] for one in session.get_inputs()}
    with torch.no_grad():
        wanted = model(*(torch.from_numpy(sample[one.name]) for one in recipe.inputs))
    figures = Figures()
    several = wanted if isinstance(wanted, (tuple, list)) else [wanted]
    for index, (one, other) in enumerate(zip(several, session.run(None, given), strict=True)):
        figures.add(str(index), one.numpy(), other, "the sample")
    return f"{dest.stat().st_size:,} bytes, {figures.relative:.2g} from PyTorch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="models whose name matches this expression")
    parser.add_argument("--scratch", type=Path, default=Path(".zoo"), help="wheels and store")
    asked = parser.parse_args()
    scratch, folder = asked.scratch.resolve(), asked.folder.resolve()
    os.environ.update(zoo.environment(scratch))
    for name, row in zoo.models().items():
        dest = folder / name / "model.onnx"
        if not re.search(asked.only, name) or name in zoo.LEFT_OUT or dest.exists():
            continue
        started = time.monotonic()
        if "needs" in row and find_spec(row["needs"]) is None:
            said = f"not written: {row['needs']} is not installed"
        else:
            try:
                said = written(name, row, scratch, dest)
            except EnginefarmError as error:
                said = f"not written: {error}"
        print(f"{name}: {said}, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
