"""People: members, invitations, sessions, me."""

from fastapi import APIRouter

from kit.auth import PrincipalKind
from quotas import members, sessions
from quotas.access import Action, allowed_actions, home_firm, require, require_person
from quotas.applications import firm_row
from quotas.vocabulary import FirmId, MemberId
from quotas.web.deps import BearerToken, CurrentPrincipal, Db, Now, Origin, SignedInPrincipal
from quotas.web.schemas import (
    AcceptIn,
    FirmOut,
    FirmQuery,
    InvitationOut,
    InvitedOut,
    InviteIn,
    MemberOut,
    MeOut,
    PasswordIn,
    RolesIn,
    SessionOut,
    SignInIn,
)

router = APIRouter(prefix="/api", tags=["members"])


@router.post("/sessions", status_code=201)
async def sign_in(body: SignInIn, db: Db, now: Now, origin: Origin) -> SessionOut:
    """Sign in with e-mail and password."""
    begun = await sessions.sign_in(db, body.email, body.password.get_secret_value(), now=now, origin=origin)
    return SessionOut.model_validate(begun)


@router.delete("/sessions/current", status_code=204)
async def sign_out(_: SignedInPrincipal, bearer: BearerToken, db: Db, now: Now, origin: Origin) -> None:
    """Sign out: the session's token is worth nothing from here on."""
    async with db.transaction() as tx:
        await sessions.sign_out(tx, bearer, now=now, origin=origin)


@router.get("/me")
async def me(principal: SignedInPrincipal, db: Db) -> MeOut:
    """Who is calling, for which firm, and what they may do there; also while the firm is not active."""
    async with db.transaction() as tx:
        firm = await firm_row(tx, home_firm(principal))
        is_member = principal.kind is PrincipalKind.MEMBER
        member = await members.member_row(tx, MemberId(principal.id)) if is_member else None
    return MeOut(
        kind=principal.kind,
        id=principal.id,
        name=member.name if member else None,
        email=member.email if member else None,
        firm=FirmOut.model_validate(firm),
        roles=sorted(principal.roles),
        scopes=sorted(principal.scopes),
        may=sorted(allowed_actions(principal, firm_id=home_firm(principal))) if firm.state == "active" else [],
    )


@router.post("/me/password", status_code=204)
async def change_password(body: PasswordIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> None:
    """Replace your password; every session of yours ends, this one too."""
    require_person(principal)
    await sessions.change_password(
        db,
        MemberId(principal.id),
        old=body.old.get_secret_value(),
        new=body.new.get_secret_value(),
        now=now,
        origin=origin,
    )


@router.get("/members")
async def list_members(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[MemberOut]:
    """A firm's members, those who left too."""
    firm = FirmId(firm_id or home_firm(principal))
    require(principal, Action.MEMBER_READ, firm_id=firm)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        return [MemberOut.model_validate(row) for row in await members.list_members(tx, firm)]


@router.put("/members/{member_id}/roles")
async def set_roles(
    member_id: str, body: RolesIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> MemberOut:
    """Give a member other roles."""
    async with db.transaction() as tx:
        member = await members.member_row(tx, MemberId(member_id))
        _may_manage(principal, member.firm_id, member_id)
        changed = await members.set_roles(tx, MemberId(member_id), body.roles, by=principal, now=now, origin=origin)
        return MemberOut.model_validate(changed)


@router.delete("/members/{member_id}")
async def remove_member(member_id: str, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> MemberOut:
    """Let a member go; their sessions end."""
    async with db.transaction() as tx:
        member = await members.member_row(tx, MemberId(member_id))
        _may_manage(principal, member.firm_id, member_id)
        gone = await members.remove(tx, MemberId(member_id), by=principal, now=now, origin=origin)
        return MemberOut.model_validate(gone)


@router.post("/invitations", status_code=201)
async def invite(body: InviteIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> InvitedOut:
    """Offer somebody a place; the token is shown once and is theirs."""
    firm = FirmId(body.firm_id or home_firm(principal))
    require(principal, Action.MEMBER_MANAGE, firm_id=firm)
    async with db.transaction() as tx:
        made = await members.invite(tx, firm, body.email, body.roles, by=principal, now=now, origin=origin)
        return InvitedOut.model_validate(made)


@router.get("/invitations")
async def list_invitations(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[InvitationOut]:
    """A firm's invitations, used and expired ones too."""
    firm = FirmId(firm_id or home_firm(principal))
    require(principal, Action.MEMBER_READ, firm_id=firm)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        return [InvitationOut.model_validate(row) for row in await members.list_invitations(tx, firm)]


@router.delete("/invitations/{invitation_id}", status_code=204)
async def revoke_invitation(invitation_id: str, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> None:
    """Take an offer back."""
    async with db.transaction() as tx:
        row = await members.invitation_row(tx, invitation_id)
        missing = members.invitation_not_found(invitation_id)
        require(principal, Action.MEMBER_MANAGE, firm_id=FirmId(row.firm_id), missing=missing)
        await members.revoke_invitation(tx, row, by=principal, now=now, origin=origin)


@router.post("/invitations/accept", status_code=201)
async def accept(body: AcceptIn, db: Db, now: Now, origin: Origin) -> SessionOut:
    """Take an offered place and be signed in."""
    begun = await members.accept(
        db,
        body.token.get_secret_value(),
        name=body.name,
        password=body.password.get_secret_value(),
        now=now,
        origin=origin,
    )
    return SessionOut.model_validate(begun)


def _may_manage(principal: CurrentPrincipal, firm_id: str, member_id: str) -> None:
    missing = members.member_not_found(member_id)
    require(principal, Action.MEMBER_MANAGE, firm_id=FirmId(firm_id), missing=missing)
