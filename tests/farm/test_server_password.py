"""Nobody uses the server without its password, and nobody has a worker run a command."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.workers.process import ProcessWorker

from tests.farm.farm_fixture import Farm, until

CREATE = "/flow_runs/"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Basic ZW5naW5lZmFybTpndWVzcw=="}, {"Authorization": "Bearer x"}],
)
@pytest.mark.parametrize("path", ["/deployments/filter", CREATE, "/work_pools/", "/flow_runs/x"])
def test_a_request_without_the_password_is_refused(
    farm: Farm, headers: dict[str, str], path: str
) -> None:
    answer = httpx.post(farm.api + path, json={}, headers=headers)
    assert answer.status_code == 401


def test_a_page_of_another_site_may_not_ask(farm: Farm) -> None:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    evil = httpx.options(farm.api + CREATE, headers={**asked, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in evil.headers
    own = farm.api.removesuffix("/api")
    itself = httpx.options(farm.api + CREATE, headers={**asked, "Origin": own})
    assert itself.headers["access-control-allow-origin"] == own


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_what_a_page_may_ask_without_asking_first_does_nothing(
    farm: Farm, kind: str, origin: str
) -> None:
    """A form is sent without a preflight. It brings no password of the user's: the browser has
    none, because the server never asks for one in the browser's own dialog."""
    headers = {"Origin": origin, **({"Content-Type": kind} if kind else {})}
    for answer in (
        httpx.post(farm.api + CREATE, content=b"{}", headers=headers),
        httpx.get(farm.api + "/admin/settings", headers=headers),
    ):
        assert answer.status_code == 401
        assert "www-authenticate" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
        assert "set-cookie" not in answer.headers


def test_a_command_that_does_not_know_the_password_says_so(farm: Farm, tmp_path: Path) -> None:
    elsewhere = {"ENGINEFARM_HOME": str(tmp_path), "PREFECT_API_URL": farm.api}
    for given, said in (({}, "none was given"), ({"PREFECT_API_AUTH_STRING": "a:b"}, "was wrong")):
        ended = farm.command("deploy", **elsewhere, **given)
        assert ended.returncode == 70, ended.stderr
        assert said in ended.stderr
        assert "Traceback" not in ended.stderr


def started(farm: Farm, **job_variables: object) -> UUID:
    """A run of `promote`, whose flow says why it fails, with variables of somebody's own."""
    with farm.client() as client:
        found = client.read_deployment_by_name("promote/promote")
        answer = client.request(
            "POST",
            f"/deployments/{found.id}/create_flow_run",
            json={
                "parameters": {"recipe": "no-such-recipe", "ask": False},
                "job_variables": job_variables,
                "state": {"type": "SCHEDULED"},
            },
        )
    return UUID(answer.json()["id"])


@pytest.mark.parametrize("flow", ["promote", "one of somebody's own"])
def test_a_deployment_cannot_bring_code_of_its_own(farm: Farm, tmp_path: Path, flow: str) -> None:
    """Whoever has the password can make one. The GPU workers have the signing key, too."""
    mark = tmp_path / "ran"
    code = tmp_path / "evil.py"
    code.write_text(f"from prefect import flow\n@flow\ndef evil(**_): open({str(mark)!r}, 'w')\n")
    with farm.client() as client:
        ours = client.read_deployment_by_name("promote/promote")
        own = ours.flow_id if flow == "promote" else client.create_flow_from_name("evil")
        made = client.create_deployment(
            own,
            "evil",
            entrypoint=f"{code}:evil",
            path="/",
            work_pool_name="control",
            pull_steps=[
                {"prefect.deployments.steps.run_shell_script": {"script": f"touch {mark}"}}
            ],
            enforce_parameter_schema=False,
        )
        run = client.create_flow_run_from_deployment(
            made, parameters={"recipe": "no-such-recipe", "ask": False}
        )
        until(lambda: bool((state := farm.look(run.id).state) and state.is_final()), "it ends")
        client.delete_deployment(made)
        ended = farm.look(run.id).state
    assert not mark.exists()
    assert ended is not None
    assert ended.message is not None
    assert ("no-such-recipe" if flow == "promote" else "'evil'") in ended.message


@pytest.mark.parametrize("template", ["ours", "one that takes any command"])
def test_a_run_cannot_choose_command_environment_or_folder(
    farm: Farm, tmp_path: Path, template: str
) -> None:
    mark, folder = tmp_path / "ran", tmp_path / "folder"
    folder.mkdir()
    (folder / "flows").mkdir()
    (folder / "flows" / "__init__.py").write_text(f"open({str(mark)!r}, 'w')")
    if template != "ours":
        with farm.client() as client:
            client.update_work_pool(
                "control",
                WorkPoolUpdate(base_job_template=ProcessWorker.get_default_base_job_template()),
            )
    try:
        run = farm.wait(
            started(
                farm,
                command=f"touch {mark}",
                env={"PYTHONPATH": str(folder), "PREFECT__FLOW_ENTRYPOINT": "os.abort"},
                working_dir=str(folder),
            )
        )
    finally:
        if template != "ours":
            assert farm.command("deploy").returncode == 0  # which puts the template back
    assert not mark.exists()
    assert (run.state.name or "").startswith("Failed: "), run.state
    assert "no-such-recipe" in run.state.message
