"""`heliu key`, `project`, `quota`: what a firm's programs may do, and how much of the city it may use."""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call, console, show
from kit.units import MAX_AMOUNT, MILLI_PER_GPU
from quotas.cli_options import FirmId, FirmOption, Why, WhyAsked, WhyNeeded
from quotas.vocabulary import RequestState, Scope

app = typer.Typer()
key = typer.Typer(help="API keys: issue, list, rotate, revoke.", no_args_is_help=True)
project = typer.Typer(help="Projects of a firm.", no_args_is_help=True)
quota = typer.Typer(help="Quotas per firm and pool.", no_args_is_help=True)
app.add_typer(key, name="key")
app.add_typer(project, name="project")
app.add_typer(quota, name="quota")


KeyId = Annotated[str, typer.Argument(help="A key's id, not its secret.")]
RequestId = Annotated[str, typer.Argument(help="The id of a request for quota.")]

KEY_COLUMNS = {
    "id": "key",
    "name": "name",
    "scopes": "scopes",
    "project_id": "project",
    "expires_at": "expires",
    "revoked_at": "revoked",
    "last_used_at": "last used",
}
REQUEST_COLUMNS = {
    "id": "request",
    "firm_id": "firm",
    "pool": "pool",
    "asked": "asked",
    "granted": "granted",
    "state": "state",
    "condition": "condition",
    "decision_reason": "reason",
}
QUOTA_COLUMNS = {"firm_id": "firm", "pool": "pool", "gpus": "GPUs", "effective_from": "from", "reason": "reason"}


@key.command("issue")
def issue(
    name: Annotated[str, typer.Argument(help="What you call the key.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may be used for; may be repeated.")],
    project_id: Annotated[str | None, typer.Option("--project", help="Project id; default: the default one.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only these models; may be repeated.")] = None,
    ip_range: Annotated[list[str] | None, typer.Option(help="Only from here, e.g. 203.0.113.0/24.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Requests a minute; default: any.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Tokens a minute; default: any.")] = None,
    requests_at_once: Annotated[int | None, typer.Option(min=1, help="Requests at once; default: any.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="When it ends, e.g. 2027-01-31T00:00:00+08:00.")] = None,
    firm_id: FirmOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key; its token is shown once."""
    body = {
        "name": name,
        "scopes": scope,
        "project_id": project_id,
        "models": model or None,
        "ip_ranges": ip_range or None,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "requests_at_once": requests_at_once,
        "expires_at": expires_at,
        "firm_id": firm_id,
    }
    _show_issued(call("POST", "/api/keys", json=body), as_json)


@key.command("list")
def list_keys(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List keys, never their secrets."""
    show(call("GET", "/api/keys", params=_of(firm_id)), as_json=as_json, columns=KEY_COLUMNS)


@key.command("show")
def show_key(key_id: KeyId, as_json: JsonFlag = False) -> None:
    """Show one key, never its secret."""
    show(call("GET", f"/api/keys/{key_id}"), as_json=as_json)


@key.command("revoke")
def revoke(key_id: KeyId, reason: WhyNeeded = "revoked", as_json: JsonFlag = False) -> None:
    """Stop a key everywhere within two seconds."""
    row = call("POST", f"/api/keys/{key_id}/revoke", json={"reason": reason})
    show(row, as_json=as_json, columns=KEY_COLUMNS)


@key.command("rotate")
def rotate(
    key_id: KeyId,
    overlap_seconds: Annotated[int, typer.Option(help="How long the old one goes on; 0: not at all.")] = 86_400,
    as_json: JsonFlag = False,
) -> None:
    """Make a new key like this one; the old one goes on for the overlap."""
    _show_issued(call("POST", f"/api/keys/{key_id}/rotate", json={"overlap_seconds": overlap_seconds}), as_json)


@project.command("create")
def create_project(
    name: Annotated[str, typer.Argument(help="What you call the project.")],
    firm_id: FirmOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a project."""
    show(call("POST", "/api/projects", json={"name": name, **_of(firm_id)}), as_json=as_json)


@project.command("list")
def list_projects(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List a firm's projects."""
    show(call("GET", "/api/projects", params=_of(firm_id)), as_json=as_json)


@quota.command("set")
def set_quota(
    firm_id: FirmId,
    pool: Annotated[str, typer.Argument(help="<centre>/<accelerator>, e.g. optics-valley/cpu-slot.")],
    gpus: Annotated[str, typer.Argument(help="GPUs (or CPU slots), e.g. 2 or 0.5.")],
    effective_from: Annotated[str | None, typer.Option("--from", help="Default: now.")] = None,
    borrowing: Annotated[str | None, typer.Option(help="GPUs it may use above its quota; default: any.")] = None,
    lending: Annotated[str | None, typer.Option(help="GPUs of it that others may use; default: all.")] = None,
    reason: Why = None,
    as_json: JsonFlag = False,
) -> None:
    """Set what a firm may use of a pool, from now or from a day to come."""
    body = {
        "firm_id": firm_id,
        "pool": pool,
        "nominal_gpu_milli": thousandths(gpus),
        "effective_from": effective_from,
        "borrowing_gpu_milli": thousandths(borrowing) if borrowing else None,
        "lending_gpu_milli": thousandths(lending) if lending else None,
        "reason": reason,
    }
    _show_quotas([call("POST", "/api/quotas", json=body)], as_json)


@quota.command("list")
def list_quotas(
    firm_id: FirmOption = None,
    at: Annotated[str | None, typer.Option(help="Any instant, past or to come; default: now.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the quotas in force."""
    params = _of(firm_id) | ({"at": at} if at else {})
    _show_quotas(call("GET", "/api/quotas", params=params), as_json)


@quota.command("history")
def quota_history(
    firm_id: FirmOption = None,
    pool: Annotated[str | None, typer.Option(help="Only this pool.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List every version ever written, newest first."""
    params = _of(firm_id) | ({"pool": pool} if pool else {})
    _show_quotas(call("GET", "/api/quotas/history", params=params), as_json)


@quota.command("ask")
def ask(
    pool: Annotated[str, typer.Argument(help="<centre>/<accelerator>.")],
    gpus: Annotated[str, typer.Argument(help="GPUs (or CPU slots) in all, e.g. 2 or 0.5.")],
    reason: WhyAsked,
    effective_from: Annotated[str | None, typer.Option("--from", help="Default: when it is granted.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask for a quota."""
    body = {"pool": pool, "nominal_gpu_milli": thousandths(gpus), "reason": reason, "effective_from": effective_from}
    _show_requests(call("POST", "/api/quota-requests", json=body), as_json)


@quota.command("requests")
def list_requests(
    firm_id: FirmOption = None,
    state: Annotated[RequestState | None, typer.Option(help="Only requests in this state.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List requests for quota, newest first."""
    params = _of(firm_id) | ({"state": state.value} if state else {})
    _show_requests(call("GET", "/api/quota-requests", params=params), as_json)


@quota.command("grant")
def grant(
    request_id: RequestId,
    gpus: Annotated[str | None, typer.Option(help="Less than was asked; then say --reason.")] = None,
    effective_from: Annotated[str | None, typer.Option("--from", help="Another day than was asked.")] = None,
    borrowing: Annotated[str | None, typer.Option(help="GPUs it may use above its quota; default: any.")] = None,
    lending: Annotated[str | None, typer.Option(help="GPUs of it that others may use; default: all.")] = None,
    condition: Annotated[str | None, typer.Option(help="What the firm must keep to.")] = None,
    reason: Why = None,
    as_json: JsonFlag = False,
) -> None:
    """Grant a request: whole, in part, from another day, under a condition."""
    body = {
        "nominal_gpu_milli": thousandths(gpus) if gpus else None,
        "effective_from": effective_from,
        "borrowing_gpu_milli": thousandths(borrowing) if borrowing else None,
        "lending_gpu_milli": thousandths(lending) if lending else None,
        "condition": condition,
        "reason": reason,
    }
    _show_requests(call("POST", f"/api/quota-requests/{request_id}/grant", json=body), as_json)


@quota.command("refuse")
def refuse(request_id: RequestId, reason: WhyAsked, as_json: JsonFlag = False) -> None:
    """Refuse a request and say why."""
    _show_requests(call("POST", f"/api/quota-requests/{request_id}/refuse", json={"reason": reason}), as_json)


@quota.command("withdraw")
def withdraw(request_id: RequestId, as_json: JsonFlag = False) -> None:
    """Take a request back."""
    _show_requests(call("POST", f"/api/quota-requests/{request_id}/withdraw"), as_json)


def thousandths(number: str) -> int:
    """`"0.5"` → 500. Ends the command with a usage error for what has no whole number of thousandths."""
    try:
        milli = Decimal(number) * MILLI_PER_GPU
        if milli.is_finite() and abs(milli) <= MAX_AMOUNT and milli == milli.to_integral_value():
            return int(milli)
    except InvalidOperation:
        pass
    raise typer.BadParameter(f"{number!r} is not a number with at most three decimals, such as 2 or 0.5")


def _show_quotas(rows: list[dict[str, Any]], as_json: bool) -> None:
    with_gpus = [{**row, "gpus": row["nominal_gpu_milli"] / MILLI_PER_GPU} for row in rows]
    show(rows if as_json else with_gpus, as_json=as_json, columns=QUOTA_COLUMNS)


def _show_requests(answer: Any, as_json: bool) -> None:
    if as_json:
        show(answer, as_json=True)
        return
    rows = answer if isinstance(answer, list) else [answer]
    with_gpus = [
        {**row, "asked": _gpus(row["asked_gpu_milli"]), "granted": _gpus(row["granted_gpu_milli"])} for row in rows
    ]
    show(with_gpus, as_json=False, columns=REQUEST_COLUMNS)


def _gpus(milli: int | None) -> float | None:
    return None if milli is None else milli / MILLI_PER_GPU


def _show_issued(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(made, as_json=True)
        return
    show(made["key"], as_json=False, columns=KEY_COLUMNS)
    console.print("The key is shown once; keep it safe:")
    console.print(made["token"], soft_wrap=True, markup=False, highlight=False)


def _of(firm_id: str | None) -> dict[str, Any]:
    return {"firm_id": firm_id} if firm_id else {}
