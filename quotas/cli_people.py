"""`heliu login`, `firm`, `member`: signing in, letting firms in, inviting people."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call, console, save_token, session_file, show, tell
from kit.units import format_yuan
from quotas.cli_options import FirmId, FirmOption
from quotas.vocabulary import CLUSTER_NAMES, FirmState, IndustryCluster, ReviewStep, Role

app = typer.Typer()
firm = typer.Typer(help="Firms: apply, review, suspend, close.", no_args_is_help=True)
member = typer.Typer(help="Members of a firm: invite, roles, remove.", no_args_is_help=True)
app.add_typer(firm, name="firm")
app.add_typer(member, name="member")

PasswordOption = Annotated[
    str, typer.Option(prompt=True, hide_input=True, envvar="HELIU_PASSWORD", help="Asked for when left out.")
]
NewPasswordOption = Annotated[
    str,
    typer.Option(
        prompt=True,
        hide_input=True,
        confirmation_prompt=True,
        envvar="HELIU_PASSWORD",
        help="10 characters or more; asked for when left out.",
    ),
]
Reason = Annotated[str | None, typer.Option(help="Why; the firm reads it, and the audit log keeps it.")]

MemberId = Annotated[str, typer.Argument(help="A member's id (mem_…).")]
CLUSTERS = ", ".join(f"{one} ({CLUSTER_NAMES[one]})" for one in IndustryCluster)

FIRM_COLUMNS = {
    "id": "firm",
    "name": "name",
    "state": "state",
    "uscc": "USCC",
    "industry_cluster": "cluster",
    "district": "district",
    "applied_at": "applied",
}
MEMBER_COLUMNS = {"id": "member", "email": "e-mail", "name": "name", "roles": "roles", "state": "state"}


@app.command()
def login(
    email: Annotated[str, typer.Option(prompt="E-mail", help="Your e-mail address; asked for when left out.")],
    password: PasswordOption,
    as_json: JsonFlag = False,
) -> None:
    """Sign in and keep the session for the commands that follow."""
    begun = call("POST", "/api/sessions", json={"email": email, "password": password})
    _keep(begun, as_json)


@app.command()
def logout(as_json: JsonFlag = False) -> None:
    """Sign out and forget the session."""
    call("DELETE", "/api/sessions/current")
    session_file().unlink(missing_ok=True)
    tell("signed out", as_json=as_json, signed_in=False)


@app.command()
def whoami(as_json: JsonFlag = False) -> None:
    """Show who you are, for which firm, and what you may do."""
    me = call("GET", "/api/me")
    if as_json:
        show(me, as_json=True)
        return
    shown = {key: me[key] for key in ("id", "name", "email", "roles", "scopes", "may")}
    show({**shown, "firm": f"{me['firm']['name']} ({me['firm']['id']}, {me['firm']['state']})"}, as_json=False)
    for line in (me["firm"]["state_reason"], *me["firm"]["doubts"]):
        if line:
            console.print(line, style="yellow", markup=False)


@firm.command("apply")
def apply(
    uscc: Annotated[str, typer.Option(help="18-character unified social credit code.")],
    name: Annotated[str, typer.Option(help="The firm's registered name.")],
    cluster: Annotated[str, typer.Option(help=f"Its industry: {CLUSTERS}.")],
    district: Annotated[str, typer.Option(help="The district it is registered in.")],
    contact_name: Annotated[str, typer.Option(help="Whom the platform writes to.")],
    contact_email: Annotated[str, typer.Option(help="The contact's e-mail address.")],
    owner_name: Annotated[str, typer.Option(help="The firm's first member, its owner.")],
    owner_email: Annotated[str, typer.Option(help="The owner's e-mail address, for signing in.")],
    password: NewPasswordOption,
    contact_phone: Annotated[str | None, typer.Option(help="The contact's telephone number.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Apply as a firm; the owner's account is made with it."""
    in_chinese = {chinese: one.value for one, chinese in CLUSTER_NAMES.items()}
    body = {
        "uscc": uscc,
        "name": name,
        "industry_cluster": in_chinese.get(cluster, cluster),
        "district": district,
        "contact_name": contact_name,
        "contact_email": contact_email,
        "contact_phone": contact_phone,
        "owner_name": owner_name,
        "owner_email": owner_email,
        "owner_password": password,
    }
    made = call("POST", "/api/firms", json=body)
    show(made, as_json=as_json, columns=FIRM_COLUMNS)
    if made["doubts"] and not as_json:
        console.print("Goes to manual review: " + " ".join(made["doubts"]), style="yellow", markup=False)


@firm.command("list")
def list_firms(
    state: Annotated[list[FirmState] | None, typer.Option(help="Only firms in this state; may be repeated.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List firms in the order they applied."""
    rows = call("GET", "/api/firms", params={"state": [one.value for one in state or []]})
    show(rows, as_json=as_json, columns=FIRM_COLUMNS)


@firm.command("queue")
def review_queue(as_json: JsonFlag = False) -> None:
    """List the applications that wait for a decision, with what a reviewer must look at."""
    rows = call("GET", "/api/firms", params={"state": ["applied", "in_review"]})
    show(rows, as_json=as_json, columns={**FIRM_COLUMNS, "doubts": "look at"})


@firm.command("show")
def show_firm(firm_id: FirmId, as_json: JsonFlag = False) -> None:
    """Show one firm."""
    show(call("GET", f"/api/firms/{firm_id}"), as_json=as_json)


@firm.command("take")
def take(firm_id: FirmId, as_json: JsonFlag = False) -> None:
    """Take an application from the queue to look at it."""
    _review(firm_id, ReviewStep.TAKE, None, as_json)


@firm.command("approve")
def approve(firm_id: FirmId, reason: Reason = None, as_json: JsonFlag = False) -> None:
    """Let a firm in. With open doubts, --reason says how they were resolved."""
    _review(firm_id, ReviewStep.APPROVE, reason, as_json)


@firm.command("reject")
def reject(firm_id: FirmId, reason: Reason = None, as_json: JsonFlag = False) -> None:
    """Refuse an application."""
    _review(firm_id, ReviewStep.REJECT, reason, as_json)


@firm.command("suspend")
def suspend(firm_id: FirmId, reason: Reason = None, as_json: JsonFlag = False) -> None:
    """Stop a firm for now: its keys stop within two seconds."""
    _review(firm_id, ReviewStep.SUSPEND, reason, as_json)


@firm.command("resume")
def resume(firm_id: FirmId, reason: Reason = None, as_json: JsonFlag = False) -> None:
    """Let a suspended firm work again."""
    _review(firm_id, ReviewStep.RESUME, reason, as_json)


@firm.command("close")
def close(firm_id: FirmId, reason: Reason = None, as_json: JsonFlag = False) -> None:
    """Close a firm for good."""
    _review(firm_id, ReviewStep.CLOSE, reason, as_json)


@member.command("list")
def list_members(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List the members of a firm."""
    rows = call("GET", "/api/members", params=_of(firm_id))
    show(rows, as_json=as_json, columns=MEMBER_COLUMNS)


@member.command("invite")
def invite(
    email: Annotated[str, typer.Argument(help="Whom to invite: an e-mail address.")],
    role: Annotated[list[Role], typer.Option(help="May be repeated.")],
    firm_id: FirmOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Invite somebody; hand them the token, it is shown once."""
    made = call("POST", "/api/invitations", json={"email": email, "roles": role, **_of(firm_id)})
    if as_json:
        show(made, as_json=True)
        return
    expires = made["invitation"]["expires_at"]
    console.print(f"{email} joins with this token until {expires}; it is shown once:", markup=False, highlight=False)
    console.print(f"heliu member accept {made['token']}", soft_wrap=True, markup=False, highlight=False)


@member.command("invitations")
def list_invitations(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List invitations."""
    rows = call("GET", "/api/invitations", params=_of(firm_id))
    columns = {"id": "invitation", "email": "e-mail", "roles": "roles", "expires_at": "until"}
    show(rows, as_json=as_json, columns={**columns, "accepted_at": "accepted", "revoked_at": "taken back"})


@member.command("uninvite")
def uninvite(
    invitation_id: Annotated[str, typer.Argument(help="An invitation's id, as member invitations lists it.")],
    as_json: JsonFlag = False,
) -> None:
    """Take an invitation back."""
    call("DELETE", f"/api/invitations/{invitation_id}")
    tell(f"invitation {invitation_id} is taken back", as_json=as_json, id=invitation_id, state="revoked")


@member.command("accept")
def accept(
    token: Annotated[str, typer.Argument(help="The token that came with the invitation.")],
    name: Annotated[str, typer.Option(prompt=True, help="Your name; asked for when left out.")],
    password: NewPasswordOption,
    as_json: JsonFlag = False,
) -> None:
    """Use an invitation and be signed in."""
    body = {"token": token, "name": name, "password": password}
    _keep(call("POST", "/api/invitations/accept", json=body), as_json)


@member.command("roles")
def set_roles(
    member_id: MemberId,
    role: Annotated[list[Role], typer.Option(help="All roles the member shall have; may be repeated.")],
    as_json: JsonFlag = False,
) -> None:
    """Give a member other roles."""
    row = call("PUT", f"/api/members/{member_id}/roles", json={"roles": role})
    show(row, as_json=as_json, columns=MEMBER_COLUMNS)


@member.command("remove")
def remove(member_id: MemberId, as_json: JsonFlag = False) -> None:
    """Let a member go; their sessions end."""
    show(call("DELETE", f"/api/members/{member_id}"), as_json=as_json, columns=MEMBER_COLUMNS)


def _review(firm_id: str, step: ReviewStep, reason: str | None, as_json: bool) -> None:
    row = call("POST", f"/api/firms/{firm_id}/review", json={"step": step, "reason": reason})
    show(row, as_json=as_json, columns={**FIRM_COLUMNS, "state_reason": "reason"})
    if not as_json and row["account"] is not None:
        _tell_of_money(row["account"])


def _tell_of_money(account: Mapping[str, Any]) -> None:
    """What a firm that stops still has, or owes."""
    balance, held = account["balance_micro_yuan"], account["held_micro_yuan"]
    if balance < 0:
        console.print(f"it owes {format_yuan(-balance)}; book what it pays: heliu account top-up", highlight=False)
    elif balance:
        on_hold = f", {format_yuan(held)} of it on hold for work under way" if held else ""
        console.print(f"it has {format_yuan(balance)}{on_hold}; pay it back: heliu account withdraw", highlight=False)


def _of(firm_id: str | None) -> dict[str, Any]:
    return {"firm_id": firm_id} if firm_id else {}


def _keep(begun: dict[str, Any], as_json: bool) -> None:
    save_token(begun["token"])
    kept = {key: value for key, value in begun.items() if key != "token"}
    show(kept, as_json=as_json, columns={"member_id": "member", "firm_id": "firm", "expires_at": "until"})
