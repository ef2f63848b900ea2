"""`heliu job pause`, `resume`, `priority`: a job under way in its owner's hands."""

from typing import Annotated

import typer

from kit.cli import JsonFlag, call, show
from scheduler.cli_jobs import JOB_COLUMNS, JobId, edges, job, priced

app = typer.Typer()


@job.command("pause")
def pause(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Lay a job aside. What it has run is charged; it goes on later from its last checkpoint."""
    _told(call("POST", f"/api/jobs/{job_id}/pause"), as_json=as_json)


@job.command("resume")
def resume(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Queue a paused job again."""
    _told(call("POST", f"/api/jobs/{job_id}/resume"), as_json=as_json)


@job.command("after")
def run_after(
    job_id: JobId,
    other: Annotated[list[str], typer.Argument(help="Jobs or arrays to wait for: ID, ID:any or ID:failed.")],
    as_json: JsonFlag = False,
) -> None:
    """Let a job that has not started wait for others too."""
    _told(call("POST", f"/api/jobs/{job_id}/after", json={"after": edges(other)}), as_json=as_json)


@job.command("priority")
def priority(
    job_id: JobId,
    value: Annotated[int, typer.Argument(min=-1000, max=1000, help="Higher goes first among your firm's own work.")],
    as_json: JsonFlag = False,
) -> None:
    """Change how much a job matters among your firm's own."""
    told = call("POST", f"/api/jobs/{job_id}/priority", json={"priority": value})
    show(told if as_json else priced(told), as_json=as_json, columns=JOB_COLUMNS | {"priority": "Priority"})


def _told(seen: dict[str, object], *, as_json: bool) -> None:
    show(seen if as_json else priced(seen), as_json=as_json, columns=JOB_COLUMNS)
