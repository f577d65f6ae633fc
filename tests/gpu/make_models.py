"""Models of tests/gpu and benchmarks/gpu_side_by_side.py: python make_models.py FOLDER [NAME …]

Small ones made node by node, a ResNet-50 of fixed random weights, and EfficientNet-Lite0
with its pretrained weights where its packages are installed. Opset 17, which every TensorRT
since 8.6 parses. Beside each `NAME.onnx`: `NAME.npz`, inputs and FP32 outputs. And what the
farm's recipe needs: `calibration.npz` and `verification.npz`, crops that no other file holds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import small_models
import tiny_onnx
import torch

ROOT = Path(__file__).resolve().parents[2]


def resnet50() -> torch.nn.Module:
    import torchvision  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    return torchvision.models.resnet50(weights=None).eval()


def efficientnet_lite0() -> torch.nn.Module:
    sys.path.insert(0, str(ROOT / "examples" / "01_efficientnet_lite0"))
    from model import efficientnet_lite0 as make  # pyright: ignore[reportMissingImports]

    return make().eval()


TORCH: dict[str, Any] = {"resnet50": resnet50, "efficientnet_lite0": efficientnet_lite0}


def torch_contender(name: str, device: str) -> Any:
    """For RemoteContender and for the same process."""
    from enginefarm.run.contenders import TorchContender

    label = f"PyTorch {torch.__version__} eager FP32, {device}"
    return TorchContender(label, TORCH[name](), outputs=["scores"], device=device)


def pictures(count: int, seed: int = 3) -> np.ndarray[Any, Any]:
    """(count, 3, 224, 224) float32 in -1 … 1: crops of scikit-image's own photographs."""
    import skimage.data
    from skimage.transform import resize

    random = np.random.default_rng(seed)
    sources = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()]
    found = []
    for _ in range(count):
        picture = sources[random.integers(len(sources))]
        side = int(min(picture.shape[:2]) * random.uniform(0.5, 1))
        top, left = (int(random.integers(picture.shape[axis] - side + 1)) for axis in (0, 1))
        crop = np.asarray(resize(picture[top : top + side, left : left + side], (224, 224)))
        found.append((2 * crop - 1).transpose(2, 0, 1))
    return np.stack(found).astype(np.float32)


def from_torch(folder: Path, name: str) -> None:
    module = TORCH[name]()
    images = pictures(16)
    torch.onnx.export(
        module,
        (torch.from_numpy(images[:2]),),
        folder / f"{name}.onnx",
        input_names=["images"],
        output_names=["scores"],
        dynamic_axes={"images": {0: "batch"}, "scores": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    with torch.inference_mode():
        batches = [images[:8], images[8:]]
        scores = [module(torch.from_numpy(batch)).numpy() for batch in batches]
    arrays = {}
    for index, (batch, out) in enumerate(zip(batches, scores, strict=True)):
        arrays |= {f"{index:04d}/input/images": batch, f"{index:04d}/output/scores": out}
    np.savez(folder / f"{name}.npz", **arrays)


def main(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    small_models.convolutions(folder / "conv.onnx")
    small_models.data_dependent(folder / "nonzero.onnx")
    small_models.other_classifier(folder / "other.onnx")
    tiny_onnx.reshape_by_input(folder / "reshape.onnx")
    np.savez(folder / "calibration.npz", images=pictures(64, seed=4))
    np.savez(folder / "verification.npz", images=pictures(32, seed=5))
    for name in names or TORCH:
        try:
            from_torch(folder, name)
        except ImportError as error:
            print(f"{name}: left out, {error}")
    print(*sorted(path.name for path in folder.iterdir()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
