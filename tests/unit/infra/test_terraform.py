"""The Terraform module: formatted, and one with the GPU table and the Kubernetes overlay.

`terraform validate` needs the Google provider, which no package index has; what was run
instead is in infra/terraform/check.sh.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

from enginefarm.documents.gpus import table


def rows(infra: Path) -> dict[str, str]:
    """GPU label -> accelerator, of gpus.tf."""
    text = (infra / "terraform" / "gpus.tf").read_text("utf-8")
    return dict(re.findall(r'^\s+(\w+)\s+= \{.*accelerator = "([\w-]+)"', text, re.MULTILINE))


def test_formatted(infra: Path, tool: Callable[[str], str]) -> None:
    done = subprocess.run(
        [tool("terraform"), "fmt", "-check", "-diff", str(infra / "terraform")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_labels_are_in_the_gpu_table_and_have_zones_and_limits(infra: Path) -> None:
    variables = (infra / "terraform" / "variables.tf").read_text("utf-8")
    assert set(rows(infra)) == {"t4", "l4", "a100"}
    for label in rows(infra):
        assert label in table()
        assert len(re.findall(rf"^\s+{label}\s+=", variables, re.MULTILINE)) == 2, label


def test_accelerators_are_those_that_the_gke_overlay_asks_for(infra: Path) -> None:
    for label, accelerator in rows(infra).items():
        overlay = infra / "kubernetes" / "overlays" / "gke" / label / "kustomization.yaml"
        document = yaml.safe_load(overlay.read_text("utf-8"))
        assert f"gke-accelerator: {accelerator}" in document["patches"][0]["patch"]


def test_every_gpu_pool_goes_down_to_none(infra: Path) -> None:
    text = (infra / "terraform" / "gpus.tf").read_text("utf-8")
    assert re.search(r"total_min_node_count\s+= 0", text)


def test_inference_hosts_read_and_workers_do_not_administer(infra: Path) -> None:
    text = (infra / "terraform" / "accounts.tf").read_text("utf-8")
    assert set(re.findall(r'"roles/storage\.(\w+)"', text)) == {"objectUser", "objectViewer"}
    assert "roles/owner" not in text
    assert "roles/editor" not in text
