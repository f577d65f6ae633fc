"""A channel moved to a recipe's engines: gates first, then a person, then one atomic step."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from enginefarm.documents.manifest import Manifest
from enginefarm.errors import EnginefarmError, GateError, running
from enginefarm.planning.outcome import inert
from enginefarm.release import promote as release
from enginefarm.schema import Name
from enginefarm.store import open_store
from enginefarm.store.channels import GateResult
from enginefarm.store.signing import trust

APPROVAL_S = 24 * 3600


class ApprovalForm(RunInput):
    """What the person who resumes the run fills in."""

    approved: bool = Field(description="Move the channel to these engines?")
    by: str = Field(min_length=1, max_length=100, description="Your name, for the log.")
    why: str = Field("", max_length=500, description="The reason, for the log.")


@flow(name="promote", persist_result=False)
def promote(
    recipe: Name,
    channel: Name = "production",
    source: Name | None = None,
    ask: bool = True,
    allow_pending: bool = False,
) -> State[Any]:
    """Move the channel to all of the recipe's engines. Ends Promoted, or `Failed: <kind>`.

    Args:
        recipe: Name of the recipe.
        channel: The channel to move.
        source: The channel to promote from. Empty: the newest engines.
        ask: Wait for a person's approval.
        allow_pending: Accept engines that were not run on their GPU yet.
    """

    def approve(engines: tuple[Manifest, ...], gates: tuple[GateResult, ...]) -> release.Approval:
        return _ask_for_approval(recipe, channel, engines, gates)

    try:
        with running("promote"):
            revision = release.promote(
                open_store(),
                recipe,
                channel,
                source=source,
                allow_pending=allow_pending,
                trust=trust(),
                approve=approve if ask else None,
            )
    except EnginefarmError as error:
        return Failed(name=f"Failed: {type(error).__name__}", message=str(error), data=error)
    return Completed(
        name="Promoted",
        message=f"{recipe}@{channel} is revision {revision.revision}, by {revision.by}",
    )


def _ask_for_approval(
    recipe: str, channel: str, engines: tuple[Manifest, ...], gates: tuple[GateResult, ...]
) -> release.Approval:
    """Pauses the run until somebody fills in its form.

    Raises: GateError when they decline, or nobody answers in time.
    """
    create_markdown_artifact(
        key=f"promote-{recipe}".replace(".", "-").replace("_", "-"),
        markdown=to_approve(recipe, channel, engines, gates),
        description=f"To approve: {recipe}@{channel}",
    )
    try:
        answer = pause_flow_run(
            wait_for_input=ApprovalForm,
            timeout=APPROVAL_S,
            poll_interval=2,
            # An attempt after a crash asks again: Prefect refuses a pause of the same key.
            key=f"attempt-{flow_run.run_count}",
        )
    except FlowPauseTimeout:
        raise GateError(
            f"promote {recipe}@{channel}: nobody approved it within {APPROVAL_S // 3600} h",
            fix="the channel stays where it was; run promote again",
        ) from None
    if not answer.approved:
        raise GateError(
            f"promote {recipe}@{channel}: declined by {answer.by}",
            why=answer.why,
            fix="the channel stays where it was",
        )
    return release.Approval(by=answer.by, why=answer.why)


def to_approve(
    recipe: str, channel: str, engines: tuple[Manifest, ...], gates: tuple[GateResult, ...]
) -> str:
    """What the person sees with the form, as Markdown. Findings of gates may quote a server or a
    model, so they must neither load nor link anything where the decision is made."""
    lines = [f"# {recipe}@{channel}", "", "| engine | digest |", "|---|---|"]
    lines += [f"| {inert(one.spec.label)} | `{one.engine.digest[:12]}` |" for one in engines]
    lines.append("")
    for one in gates:
        said = " ".join((one.label, f"{one.gate}:", one.verdict, one.detail)).split()
        lines.append(f"- {inert(' '.join(said))}")
    return "\n".join(lines)
