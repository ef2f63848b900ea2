"""`heliu limit`: what a firm or a project may use at most, at once and in a month."""

from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call, show
from kit.units import MILLI_PER_GPU, MS_PER_HOUR
from quotas.cli_options import FirmId, FirmOption, Why
from quotas.cli_quotas import thousandths

app = typer.Typer()
limit = typer.Typer(help="Limits per firm and project: at once, and per month.", no_args_is_help=True)
app.add_typer(limit, name="limit")

ProjectOption = Annotated[str | None, typer.Option("--project", help="Project id.")]
NAMES = ("gpus_at_once", "jobs_at_once", "gpu_hours_a_month", "tokens_a_month")


@limit.command("set")
def set_limits(
    firm_id: FirmId,
    project_id: ProjectOption = None,
    gpus: Annotated[str | None, typer.Option(help="GPUs at once, e.g. 4 or 0.5; default: any.")] = None,
    jobs: Annotated[int | None, typer.Option(min=0, help="Jobs at once; default: any.")] = None,
    gpu_hours: Annotated[str | None, typer.Option(help="GPU-hours a month; default: any.")] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="Tokens a month; default: any.")] = None,
    effective_from: Annotated[str | None, typer.Option("--from", help="Default: now.")] = None,
    reason: Why = None,
    as_json: JsonFlag = False,
) -> None:
    """Set all limits of a firm or a project, from now or from a day to come; those left out are none."""
    body = {
        "firm_id": firm_id,
        "project_id": project_id,
        "gpu_milli_at_once": thousandths(gpus) if gpus else None,
        "jobs_at_once": jobs,
        "gpu_ms_per_period": thousandths(gpu_hours) * (MS_PER_HOUR // 1000) if gpu_hours else None,
        "tokens_per_period": tokens,
        "effective_from": effective_from,
        "reason": reason,
    }
    row = call("POST", "/api/limits", json=body)
    show(row if as_json else _row(row) | _readable(row), as_json=as_json)


@limit.command("show")
def show_limits(
    firm_id: FirmOption = None,
    project_id: ProjectOption = None,
    at: Annotated[str | None, typer.Option(help="Any instant, past or to come; default: now.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the limits over a project's work at an instant."""
    asked = {"firm_id": firm_id, "project_id": project_id, "at": at}
    answer = call("GET", "/api/limits", params={name: value for name, value in asked.items() if value is not None})
    if as_json:
        show(answer, as_json=True)
        return
    rows = [{"whose": whose, **_readable(answer[whose])} for whose in ("firm", "project", "effective")]
    show(rows, as_json=False, columns={"whose": "whose", **{name: name.replace("_", " ") for name in NAMES}})


@limit.command("history")
def history(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List every version ever written, newest first."""
    rows = call("GET", "/api/limits/history", params={"firm_id": firm_id} if firm_id else {})
    show(rows if as_json else [_row(row) | _readable(row) for row in rows], as_json=as_json)


@limit.command("rate")
def set_rate(
    firm_id: FirmOption = None,
    model: Annotated[str | None, typer.Option(help="At this base model; without --firm: for every firm.")] = None,
    requests: Annotated[int | None, typer.Option(min=0, help="Requests a minute; default: any.")] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="Tokens a minute; default: any.")] = None,
    at_once: Annotated[int | None, typer.Option(min=0, help="Requests at once; default: any.")] = None,
    reason: Why = None,
    as_json: JsonFlag = False,
) -> None:
    """Limit how fast /v1 is used: by a firm, by every firm at a model, or by one firm at one model."""
    body = {
        "firm_id": firm_id,
        "model": model,
        "requests_per_minute": requests,
        "tokens_per_minute": tokens,
        "requests_at_once": at_once,
        "reason": reason,
    }
    show(call("POST", "/api/limits/rates", json=body), as_json=as_json)


@limit.command("rates")
def show_rates(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List the rate limits over a firm, its own and every firm's."""
    rows = call("GET", "/api/limits/rates", params={"firm_id": firm_id} if firm_id else {})
    names = ("firm_id", "model", "requests_per_minute", "tokens_per_minute", "requests_at_once", "reason")
    show(rows, as_json=as_json, columns={name: name.replace("_", " ") for name in names})


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("firm_id", "project_id", "effective_from", "reason")}


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    gpus, hours = row["gpu_milli_at_once"], row["gpu_ms_per_period"]
    return {
        "gpus_at_once": None if gpus is None else gpus / MILLI_PER_GPU,
        "jobs_at_once": row["jobs_at_once"],
        "gpu_hours_a_month": None if hours is None else hours / MS_PER_HOUR,
        "tokens_a_month": row["tokens_per_period"],
    }
