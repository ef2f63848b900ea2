"""Questions to the tables of firms and people; decisions are made by the services."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ARRAY, ColumnElement, String, any_, bindparam, func, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel, col, select

from kit.db import violated_constraint
from kit.errors import Conflict
from quotas.adapters.tables import (
    AdminLinkRow,
    ApiKeyRow,
    AuditRow,
    FirmRow,
    InvitationRow,
    MemberRow,
    ProjectRow,
    SessionRow,
    SignInAttemptRow,
)
from quotas.vocabulary import DEFAULT_PROJECT

_TAKEN = {
    "quota_request_open": (
        "request_open",
        "The firm has an open request for this pool already.",
        "Wait for its decision, or withdraw it.",
    ),
    "firm_uscc": ("uscc_taken", "A firm with this USCC is registered already.", "Ask its owner for an invitation."),
    "member_email": ("email_taken", "This e-mail address has an account already.", "Sign in, or use another one."),
    "project_name": ("project_taken", "The firm has a project of this name already.", "Choose another name."),
}


async def insert(tx: AsyncSession, *rows: SQLModel) -> None:
    """Write rows now. Raises Conflict when a name that must be unique is taken."""
    tx.add_all(rows)
    try:
        await tx.flush()
    except IntegrityError as error:
        taken = _TAKEN.get(violated_constraint(error) or "")
        if taken is None:
            raise
        code, message, hint = taken
        raise Conflict(message, code=code, hint=hint) from error


async def firm(tx: AsyncSession, firm_id: str, *, lock: bool = False) -> FirmRow | None:
    """The firm; with `lock` nobody else changes it until the transaction ends."""
    return await tx.get(FirmRow, firm_id, with_for_update=lock or None, populate_existing=lock)


async def firms(tx: AsyncSession, *, states: Sequence[str], after: str, limit: int) -> Sequence[FirmRow]:
    """Companies with an id greater than `after`, in the order they applied; all states when none are named."""
    query = select(FirmRow).where(FirmRow.kind == "company", col(FirmRow.id) > after)
    if states:
        query = query.where(col(FirmRow.state).in_(states))
    return (await tx.execute(query.order_by(col(FirmRow.id)).limit(limit))).scalars().all()


async def firms_in(tx: AsyncSession, firm_ids: Sequence[str], *, states: Sequence[str]) -> Sequence[FirmRow]:
    """Of these firms those that are in one of these states."""
    query = select(FirmRow).where(col(FirmRow.id).in_(firm_ids), col(FirmRow.state).in_(states))
    return (await tx.execute(query)).scalars().all()


async def applications_since(tx: AsyncSession, origin: str, since: datetime) -> int:
    """How many firms applied from one address since an instant."""
    query = select(func.count()).where(
        AuditRow.action == "firm.apply", AuditRow.origin == origin, col(AuditRow.at) >= since
    )
    return (await tx.execute(query)).scalar_one()


async def project(tx: AsyncSession, firm_id: str, *, project_id: str | None = None) -> ProjectRow | None:
    """The project of this firm by id, or its default project."""
    query = select(ProjectRow).where(ProjectRow.firm_id == firm_id)
    named = ProjectRow.id == project_id if project_id is not None else ProjectRow.name == DEFAULT_PROJECT
    return (await tx.execute(query.where(named))).scalar_one_or_none()


async def projects(tx: AsyncSession, firm_id: str) -> Sequence[ProjectRow]:
    """All projects of a firm, oldest first."""
    query = select(ProjectRow).where(ProjectRow.firm_id == firm_id).order_by(col(ProjectRow.id))
    return (await tx.execute(query)).scalars().all()


async def member(tx: AsyncSession, member_id: str) -> MemberRow | None:
    """The member by id."""
    return await tx.get(MemberRow, member_id)


async def member_by_email(tx: AsyncSession, email: str) -> MemberRow | None:
    """Who signs in with this address now, else the last who did."""
    query = select(MemberRow).where(MemberRow.email == email)
    query = query.order_by(col(MemberRow.state) != "active", col(MemberRow.created_at).desc()).limit(1)
    return (await tx.execute(query)).scalar_one_or_none()


async def members(tx: AsyncSession, firm_id: str) -> Sequence[MemberRow]:
    """All members of a firm, those who left too."""
    query = select(MemberRow).where(MemberRow.firm_id == firm_id).order_by(col(MemberRow.id))
    return (await tx.execute(query)).scalars().all()


async def lock_members(tx: AsyncSession, firm_id: str) -> Sequence[MemberRow]:
    """The active members of a firm, locked in id order, so that two changes of roles see each other."""
    query = select(MemberRow).where(MemberRow.firm_id == firm_id, MemberRow.state == "active")
    query = query.order_by(col(MemberRow.id)).with_for_update().execution_options(populate_existing=True)
    return (await tx.execute(query)).scalars().all()


async def let_members_go(tx: AsyncSession, firm_id: str, *, now: datetime) -> None:
    """Every member of a firm leaves; their addresses are free again."""
    await tx.execute(
        update(MemberRow)
        .where(col(MemberRow.firm_id) == firm_id, col(MemberRow.state) == "active")
        .values(state="left", left_at=now)
    )


async def session_of(tx: AsyncSession, token_hash: bytes) -> tuple[SessionRow, MemberRow, FirmRow] | None:
    """A session with its member and the member's firm."""
    query = (
        select(SessionRow, MemberRow, FirmRow)
        .join(MemberRow, col(MemberRow.id) == SessionRow.member_id)
        .join(FirmRow, col(FirmRow.id) == MemberRow.firm_id)
        .where(SessionRow.token_hash == token_hash)
    )
    row = (await tx.execute(query)).one_or_none()
    return (row[0], row[1], row[2]) if row else None


async def end_sessions(tx: AsyncSession, member_id: str, *, now: datetime, but: str | None = None) -> None:
    """End every open session of a member, except the one with the id `but`."""
    await tx.execute(
        update(SessionRow)
        .where(col(SessionRow.member_id) == member_id, col(SessionRow.ended_at).is_(None))
        .where(col(SessionRow.id) != (but or ""))
        .values(ended_at=now)
    )


async def lock_door(tx: AsyncSession, email: str) -> None:
    """Let one try at this address count at a time."""
    await tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:email, 7))"), {"email": email})


async def failures(
    tx: AsyncSession, *, email: str | None = None, origin: str | None = None, since: datetime
) -> tuple[int, datetime | None]:
    """How many tries failed since an instant, for an address, a place or both; and when the first of them was."""
    query = select(func.count(), func.min(SignInAttemptRow.at)).where(
        col(SignInAttemptRow.at) > since, col(SignInAttemptRow.succeeded).is_(False)
    )
    if email is not None:
        query = query.where(SignInAttemptRow.email == email)
    if origin is not None:
        query = query.where(SignInAttemptRow.origin == origin)
    count, first = (await tx.execute(query)).one()
    return count, first


async def forget_attempts(tx: AsyncSession, *, before: datetime) -> None:
    """Delete tries at passwords that no limit looks at any more."""
    await tx.execute(text("DELETE FROM quotas.sign_in_attempt WHERE at < :before"), {"before": before})


async def invitation_of(tx: AsyncSession, token_hash: bytes) -> InvitationRow | None:
    """The invitation behind a token, locked: it is good for one use."""
    query = select(InvitationRow).where(InvitationRow.token_hash == token_hash).with_for_update()
    return (await tx.execute(query)).scalar_one_or_none()


async def invitation(tx: AsyncSession, invitation_id: str) -> InvitationRow | None:
    """The invitation by id, locked."""
    return await tx.get(InvitationRow, invitation_id, with_for_update=True)


async def invitations(tx: AsyncSession, firm_id: str) -> Sequence[InvitationRow]:
    """All invitations of a firm, oldest first."""
    query = select(InvitationRow).where(InvitationRow.firm_id == firm_id).order_by(col(InvitationRow.id))
    return (await tx.execute(query)).scalars().all()


async def revoke_invitations(tx: AsyncSession, firm_id: str, *, now: datetime) -> None:
    """Take back every open invitation of a firm."""
    await tx.execute(
        update(InvitationRow)
        .where(col(InvitationRow.firm_id) == firm_id)
        .where(col(InvitationRow.accepted_at).is_(None), col(InvitationRow.revoked_at).is_(None))
        .values(revoked_at=now)
    )


async def admin_link_of(tx: AsyncSession, token_hash: bytes) -> AdminLinkRow | None:
    """The administrator's link behind a token, locked: it is good for one use."""
    query = select(AdminLinkRow).where(AdminLinkRow.token_hash == token_hash).with_for_update()
    return (await tx.execute(query)).scalar_one_or_none()


async def key_with_firm(tx: AsyncSession, key_id: str) -> tuple[ApiKeyRow, FirmRow] | None:
    """A key and its firm."""
    query = select(ApiKeyRow, FirmRow).join(FirmRow, col(FirmRow.id) == ApiKeyRow.firm_id).where(ApiKeyRow.id == key_id)
    row = (await tx.execute(query)).one_or_none()
    return (row[0], row[1]) if row else None


async def firms_of_keys(tx: AsyncSession, key_ids: Collection[str]) -> Sequence[tuple[str, str]]:
    """(key, its firm) of those that exist."""
    query = select(ApiKeyRow.id, ApiKeyRow.firm_id).where(col(ApiKeyRow.id).in_(key_ids))
    return [(key, firm) for key, firm in await tx.execute(query)]


async def keys_with_firms(tx: AsyncSession, key_ids: Collection[str]) -> Sequence[tuple[ApiKeyRow, FirmRow]]:
    """Several keys, each with its firm."""
    query = select(ApiKeyRow, FirmRow).join(FirmRow, col(FirmRow.id) == ApiKeyRow.firm_id)
    rows = await tx.execute(query.where(_one_of(key_ids)))
    return [(row[0], row[1]) for row in rows]


async def keys_over(tx: AsyncSession, key_ids: Collection[str], *, now: datetime) -> Sequence[str]:
    """Those of them that are revoked or expired, or whose firm is not active."""
    query = select(ApiKeyRow.id).join(FirmRow, col(FirmRow.id) == ApiKeyRow.firm_id)
    ended = col(ApiKeyRow.revoked_at).is_not(None) | (col(ApiKeyRow.expires_at) <= now)
    query = query.where(_one_of(key_ids), ended | (col(FirmRow.state) != "active"))
    return (await tx.execute(query)).scalars().all()


async def lines_of(tx: AsyncSession, key_ids: Collection[str]) -> dict[str, str]:
    """Each of these keys, and the first key of its line."""
    query = select(ApiKeyRow.id, ApiKeyRow.line_id).where(_one_of(key_ids))
    return {row.id: row.line_id for row in await tx.execute(query)}


async def line_of(tx: AsyncSession, key_id: str) -> str | None:
    """The first key of a key's line; None for no key."""
    return (await tx.execute(select(ApiKeyRow.line_id).where(ApiKeyRow.id == key_id))).scalar_one_or_none()


async def lock_key(tx: AsyncSession, key_id: str) -> ApiKeyRow | None:
    """A key that nobody else changes until the transaction ends."""
    return await tx.get(ApiKeyRow, key_id, with_for_update=True, populate_existing=True)


async def keys(tx: AsyncSession, firm_id: str) -> Sequence[ApiKeyRow]:
    """All keys of a firm, newest first."""
    query = select(ApiKeyRow).where(ApiKeyRow.firm_id == firm_id).order_by(col(ApiKeyRow.id).desc())
    return (await tx.execute(query)).scalars().all()


async def touch_key(tx: AsyncSession, key_id: str, *, now: datetime, coarse: timedelta) -> None:
    """Note that a key was used, unless that was noted within `coarse`."""
    await tx.execute(
        update(ApiKeyRow)
        .where(col(ApiKeyRow.id) == key_id)
        .where(col(ApiKeyRow.last_used_at).is_(None) | (col(ApiKeyRow.last_used_at) < now - coarse))
        .values(last_used_at=now)
    )


async def revoke_keys(tx: AsyncSession, firm_id: str, *, why: str, now: datetime) -> None:
    """Revoke every key of a firm that is not revoked yet."""
    await tx.execute(
        update(ApiKeyRow)
        .where(col(ApiKeyRow.firm_id) == firm_id, col(ApiKeyRow.revoked_at).is_(None))
        .values(revoked_at=now, revoked_why=why)
    )


def _one_of(key_ids: Collection[str]) -> ColumnElement[bool]:
    """Any number of keys as one parameter."""
    return col(ApiKeyRow.id) == any_(bindparam(None, list(key_ids), ARRAY(String)))
