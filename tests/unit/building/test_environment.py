"""What a manifest records of the machine, from the packages that are installed here."""

from __future__ import annotations

from enginefarm.building.environment import environment


def test_each_package_has_the_license_that_it_declares() -> None:
    found = environment()
    assert found.licenses["onnx"] == "Apache-2.0", "License-Expression, which is SPDX already"
    assert found.licenses["onnxruntime"] == "LicenseRef-MIT-License", "a classifier's words"
    assert "Proprietary" in found.licenses["tensorrt-rtx-cu13-libs"]
    assert found.licenses.keys() <= found.packages.keys()
