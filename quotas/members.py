"""The people of a firm: invited, given roles, let go. A firm always keeps an owner, the platform an administrator."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import SYSTEM, Principal, PrincipalKind, hash_password, hash_secret
from kit.db import Database
from kit.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from kit.ids import new_id
from quotas import audit
from quotas.adapters import people_store as store
from quotas.adapters.tables import AdminLinkRow, InvitationRow, MemberRow
from quotas.applications import require_active
from quotas.bearers import mint
from quotas.sessions import SignedIn, begin_session
from quotas.vocabulary import FIRM_ROLES, PLATFORM_FIRM, STAFF_ROLES, FirmId, MemberId, Role

INVITATION_LIFE = timedelta(days=7)
ADMIN_LINK_LIFE = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Invited:
    """An invitation that was just made; `token` is shown once and goes to the invited person."""

    token: str
    invitation: InvitationRow


async def invite(
    tx: AsyncSession,
    firm_id: FirmId,
    email: str,
    roles: frozenset[Role],
    *,
    by: Principal,
    now: datetime,
    origin: str | None = None,
) -> Invited:
    """Offer a place. Raises InvalidInput for roles that do not fit the firm, Forbidden for a firm not active."""
    await require_active(tx, firm_id)
    _check_roles(firm_id, roles)
    minted = mint()
    row = InvitationRow(
        id=new_id("inv"),
        firm_id=firm_id,
        email=email,
        roles=sorted(roles),
        token_hash=minted.token_hash,
        invited_by=by.id,
        created_at=now,
        expires_at=now + INVITATION_LIFE,
    )
    await store.insert(tx, row)
    await audit.record(
        tx, "member.invite", row.id, by=by, now=now, firm_id=firm_id, origin=origin,
        after={"email": email, "roles": row.roles},
    )  # fmt: skip
    return Invited(minted.token, row)


async def accept(
    db: Database, token: str, *, name: str, password: str, now: datetime, origin: str | None = None
) -> SignedIn:
    """Take an offered place and sign in. Raises Unauthenticated for a token unknown, used, revoked or expired."""
    async with db.transaction() as tx:
        _open_invitation(await store.invitation_of(tx, hash_secret(token)), now=now)
    password_hash = await asyncio.to_thread(hash_password, password)
    async with db.transaction() as tx:
        invitation = _open_invitation(await store.invitation_of(tx, hash_secret(token)), now=now)
        await require_active(tx, FirmId(invitation.firm_id))
        invitation.accepted_at = now
        member = MemberRow(
            id=new_id("mem"),
            firm_id=invitation.firm_id,
            email=invitation.email,
            name=name,
            password_hash=password_hash,
            roles=invitation.roles,
            state="active",
            created_at=now,
        )
        await store.insert(tx, member)
        me = Principal(PrincipalKind.MEMBER, member.id, member.firm_id)
        await audit.record(
            tx, "member.join", member.id, by=me, now=now, firm_id=member.firm_id, origin=origin,
            after={"email": member.email, "roles": member.roles, "invitation": invitation.id},
        )  # fmt: skip
        await events.append(tx, "member.joined", member.id, {"roles": member.roles}, now=now, firm_id=member.firm_id)
        return await begin_session(tx, member, now=now, origin=origin)


async def list_invitations(tx: AsyncSession, firm_id: FirmId) -> Sequence[InvitationRow]:
    """A firm's invitations, used and expired ones too."""
    return await store.invitations(tx, firm_id)


async def invitation_row(tx: AsyncSession, invitation_id: str) -> InvitationRow:
    """The invitation, locked. Raises NotFound."""
    row = await store.invitation(tx, invitation_id)
    if row is None:
        raise invitation_not_found(invitation_id)
    return row


def invitation_not_found(invitation_id: str) -> NotFound:
    """The one answer for an invitation that does not exist and for another firm's."""
    return NotFound(
        f"There is no invitation {invitation_id}.", code="invitation_not_found", hint="see: heliu member invitations"
    )


async def revoke_invitation(
    tx: AsyncSession, row: InvitationRow, *, by: Principal, now: datetime, origin: str | None = None
) -> None:
    """Take an offer back. Raises Conflict once it was accepted; twice has no further effect."""
    if row.accepted_at is not None:
        raise Conflict("This invitation was accepted already.", code="invitation_used", hint="Remove the member.")
    if row.revoked_at is None:
        row.revoked_at = now
        await audit.record(tx, "invitation.revoke", row.id, by=by, now=now, firm_id=row.firm_id, origin=origin)


async def list_members(tx: AsyncSession, firm_id: FirmId) -> Sequence[MemberRow]:
    """A firm's members, those who left too."""
    return await store.members(tx, firm_id)


async def member_row(tx: AsyncSession, member_id: MemberId) -> MemberRow:
    """The member. Raises NotFound."""
    row = await store.member(tx, member_id)
    if row is None:
        raise member_not_found(member_id)
    return row


def member_not_found(member_id: str) -> NotFound:
    """The one answer for a member who does not exist and for another firm's."""
    return NotFound(f"There is no member {member_id}.", code="member_not_found", hint="see: heliu member list")


async def set_roles(
    tx: AsyncSession,
    member_id: MemberId,
    roles: frozenset[Role],
    *,
    by: Principal,
    now: datetime,
    origin: str | None = None,
) -> MemberRow:
    """Give a member other roles. Raises NotFound, InvalidInput, Conflict (`last_owner`)."""
    member, others = await _among_others(tx, member_id)
    _check_roles(FirmId(member.firm_id), roles)
    _keep_a_head(member, others, after=frozenset(roles))
    before, member.roles = list(member.roles), sorted(role.value for role in roles)
    await audit.record(
        tx, "member.roles", member.id, by=by, now=now, firm_id=member.firm_id, origin=origin,
        before={"roles": before}, after={"roles": member.roles},
    )  # fmt: skip
    return member


async def remove(
    tx: AsyncSession, member_id: MemberId, *, by: Principal, now: datetime, origin: str | None = None
) -> MemberRow:
    """Let a member go and end their sessions. Raises NotFound, Conflict (`last_owner`)."""
    member, others = await _among_others(tx, member_id)
    _keep_a_head(member, others, after=frozenset())
    member.state, member.left_at = "left", now
    await store.end_sessions(tx, member.id, now=now)
    await audit.record(
        tx, "member.remove", member.id, by=by, now=now, firm_id=member.firm_id, origin=origin,
        before={"roles": member.roles},
    )  # fmt: skip
    await events.append(tx, "member.left", member.id, {}, now=now, firm_id=member.firm_id)
    return member


async def issue_admin_link(tx: AsyncSession, now: datetime) -> str:
    """A token that makes its first holder an administrator, for 15 minutes. Only whoever runs the server gets one."""
    minted = mint()
    row = AdminLinkRow(id=new_id("lnk"), token_hash=minted.token_hash, created_at=now, expires_at=now + ADMIN_LINK_LIFE)
    await store.insert(tx, row)
    await audit.record(tx, "admin_link.issue", row.id, by=SYSTEM, now=now, firm_id=PLATFORM_FIRM)
    return minted.token


async def check_admin_link(tx: AsyncSession, token: str, *, now: datetime) -> AdminLinkRow:
    """The open link behind a token, locked. Raises Unauthenticated (`link_over`)."""
    link = await store.admin_link_of(tx, hash_secret(token))
    if link is None or link.used_at is not None or link.expires_at <= now:
        raise Unauthenticated(
            "This link is unknown, used or older than 15 minutes.",
            code="link_over",
            hint="Whoever runs the server gets a new one with: heliu admin-link",
        )
    return link


async def claim_admin_link(
    db: Database, token: str, *, email: str, name: str, password: str, now: datetime, origin: str | None = None
) -> SignedIn:
    """Use a link: its holder becomes an administrator (one who lost the password gets a new one) and is signed in."""
    async with db.transaction() as tx:
        await check_admin_link(tx, token, now=now)
    password_hash = await asyncio.to_thread(hash_password, password)
    async with db.transaction() as tx:
        link = await check_admin_link(tx, token, now=now)
        link.used_at = now
        member = await store.member_by_email(tx, email)
        if member is not None and member.state == "active" and member.firm_id == PLATFORM_FIRM:
            member.password_hash = password_hash
            member.roles = sorted({*member.roles, Role.PLATFORM_ADMIN})
            await store.end_sessions(tx, member.id, now=now)
        else:
            member = MemberRow(
                id=new_id("mem"),
                firm_id=PLATFORM_FIRM,
                email=email,
                name=name,
                password_hash=password_hash,
                roles=[Role.PLATFORM_ADMIN],
                state="active",
                created_at=now,
            )
            await store.insert(tx, member)
        await audit.record(
            tx, "admin_link.claim", link.id, by=SYSTEM, now=now, firm_id=PLATFORM_FIRM, origin=origin,
            after={"member": member.id, "email": email},
        )  # fmt: skip
        return await begin_session(tx, member, now=now, origin=origin)


async def _among_others(tx: AsyncSession, member_id: MemberId) -> tuple[MemberRow, list[MemberRow]]:
    known = await member_row(tx, member_id)
    together = await store.lock_members(tx, known.firm_id)
    found = next((one for one in together if one.id == member_id), None)
    if found is None:
        raise Conflict(
            f"{known.name} has left already.", code="member_left", hint="see who is there: heliu member list"
        )
    return found, [one for one in together if one.id != member_id]


def _keep_a_head(member: MemberRow, others: list[MemberRow], *, after: frozenset[Role]) -> None:
    head = Role.PLATFORM_ADMIN if member.firm_id == PLATFORM_FIRM else Role.FIRM_OWNER
    if head in member.roles and head not in after and not any(head in one.roles for one in others):
        raise Conflict(
            f"{member.name} is the last {head}; the firm would have none.",
            code="last_owner",
            hint=f"Give somebody else the role {head} first.",
        )


def _check_roles(firm_id: FirmId, roles: frozenset[Role]) -> None:
    fitting = STAFF_ROLES if firm_id == PLATFORM_FIRM else FIRM_ROLES
    if not roles or not roles <= fitting:
        raise InvalidInput(
            f"A member here has one or more of these roles: {', '.join(sorted(fitting))}.", code="role_not_fitting"
        )


def _open_invitation(row: InvitationRow | None, *, now: datetime) -> InvitationRow:
    if row is None or row.accepted_at is not None or row.revoked_at is not None or row.expires_at <= now:
        raise Unauthenticated(
            "This invitation is unknown, used, taken back or expired.",
            code="invitation_over",
            hint="Ask the firm's owner for a new one.",
        )
    return row
