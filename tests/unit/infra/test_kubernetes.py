"""The Kubernetes manifests: rendered by kustomize, held to Kubernetes' own schemas."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from enginefarm.documents.gpus import gpu

OVERLAYS = ("generic", "gke")
GPUS = ("t4", "l4", "a100")
SCHEMAS = ("1.30", "1.37")
# No schema of the package has KEDA's kind; its fields are asserted on below.
CUSTOM = {"ScaledObject"}


@pytest.fixture(scope="module")
def rendered(infra: Path, tool: Callable[[str], str]) -> dict[str, list[dict[str, Any]]]:
    def render(overlay: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [tool("kubectl"), "kustomize", str(infra / "kubernetes" / "overlays" / overlay)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "deprecated" not in done.stderr, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return {overlay: render(overlay) for overlay in OVERLAYS}


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {row["metadata"]["name"]: row for row in documents if row["kind"] == kind}


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        row["metadata"]["name"]: row["spec"]["template"]
        for row in documents
        if row["kind"] in ("Deployment", "StatefulSet", "Job")
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", SCHEMAS)
def test_valid_by_the_schemas(
    rendered: dict[str, list[dict[str, Any]]], overlay: str, version: str
) -> None:
    checked = [row for row in rendered[overlay] if row["kind"] not in CUSTOM]
    assert len(checked) > 15
    for document in checked:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_check_can_fail(rendered: dict[str, list[dict[str, Any]]]) -> None:
    document = yaml.safe_load(yaml.safe_dump(of_kind(rendered["gke"], "Deployment")["control"]))
    document["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, SCHEMAS[0], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("label", GPUS)
def test_one_worker_a_gpu_on_the_right_node(
    rendered: dict[str, list[dict[str, Any]]], overlay: str, label: str
) -> None:
    pod = pods(rendered[overlay])[f"worker-{label}"]["spec"]
    (container,) = pod["containers"]
    assert {"name": "GPU_LABEL", "value": label} in container["env"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod[
        "tolerations"
    ]
    (product,) = pod["nodeSelector"].values()
    if overlay == "generic":
        # Feature discovery writes NVML's name with dashes; our own patterns must know it.
        assert gpu(label).matches(product.replace("-", " ").replace("SXM4 40GB", "SXM4-40GB"))
    else:
        assert pod["nodeSelector"] == {
            "cloud.google.com/gke-accelerator": {
                "t4": "nvidia-tesla-t4",
                "l4": "nvidia-l4",
                "a100": "nvidia-tesla-a100",
            }[label]
        }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_scale_to_zero_by_their_own_queue(
    rendered: dict[str, list[dict[str, Any]]], overlay: str
) -> None:
    scaled = of_kind(rendered[overlay], "ScaledObject")
    workers = of_kind(rendered[overlay], "Deployment")
    for label in GPUS:
        spec = scaled[f"worker-{label}"]["spec"]
        assert spec["scaleTargetRef"]["name"] == f"worker-{label}"
        assert f"worker-{label}" in workers
        assert "replicas" not in workers[f"worker-{label}"]["spec"], "KEDA's to set"
        assert spec["minReplicaCount"] == 0
        (trigger,) = spec["triggers"]
        location = trigger["metadata"]["valueLocation"]
        assert location == f'enginefarm_queue_runs{{pool="{gpu(label).work_pool}",state="open"}}'


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_build_may_end_before_its_worker_does(
    rendered: dict[str, list[dict[str, Any]]], overlay: str
) -> None:
    budgets = of_kind(rendered[overlay], "PodDisruptionBudget")
    for name in ("control", *(f"worker-{label}" for label in GPUS)):
        pod = pods(rendered[overlay])[name]
        assert pod["spec"]["terminationGracePeriodSeconds"] >= 3600
        wanted = budgets[name]["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= pod["metadata"]["labels"].items()
        others = [p for n, p in pods(rendered[overlay]).items() if n != name]
        assert not any(wanted.items() <= other["metadata"]["labels"].items() for other in others)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_confined(rendered: dict[str, list[dict[str, Any]]], overlay: str) -> None:
    """What the namespace's `restricted` standard demands, and limits."""
    namespace = of_kind(rendered[overlay], "Namespace")["enginefarm"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in pods(rendered[overlay]).items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name
            for variable in container.get("env", ()):
                assert "PASSWORD" not in variable["name"] or variable["name"].endswith("_FILE")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_server_reaches_the_database(
    rendered: dict[str, list[dict[str, Any]]], overlay: str
) -> None:
    policies = of_kind(rendered[overlay], "NetworkPolicy")
    assert policies["default-deny"]["spec"]["podSelector"] == {}
    (rule,) = policies["postgres"]["spec"]["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app": "prefect-server"}}}]
    blocks = [
        peer["ipBlock"]
        for rule in policies["farm"]["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert all("169.254.0.0/16" in block["except"] for block in blocks), "metadata service"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_those_of_versions_env(
    rendered: dict[str, list[dict[str, Any]]], overlay: str, versions: dict[str, str]
) -> None:
    version = versions["ENGINEFARM_VERSION"]
    allowed = {
        f"enginefarm/control:{version}",
        f"enginefarm/worker:{version}-trt10",
        versions["POSTGRES_IMAGE"],
    }
    for name, pod in pods(rendered[overlay]).items():
        for container in pod["spec"]["containers"]:
            assert container["image"] in allowed, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_was_left_for_an_overlay_to_set(
    rendered: dict[str, list[dict[str, Any]]], overlay: str
) -> None:
    assert "SET-BY-THE-OVERLAY" not in yaml.safe_dump_all(rendered[overlay])
