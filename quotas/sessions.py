"""Signing in and out: argon2id passwords, limited tries, sessions that expire."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import Principal, PrincipalKind, hash_password, hash_secret, verify_password
from kit.db import Database
from kit.errors import InvalidInput, RateLimited, Unauthenticated
from kit.ids import new_id
from quotas import audit
from quotas.adapters import people_store as store
from quotas.adapters.tables import FirmRow, MemberRow, SessionRow, SignInAttemptRow
from quotas.applications import refuse_unless_active
from quotas.bearers import SESSION_PREFIX, mint
from quotas.firms import OVER
from quotas.vocabulary import FirmId, MemberId

SESSION_LIFE = timedelta(hours=12)
ATTEMPT_WINDOW = timedelta(minutes=15)
FAILURES_PER_PLACE = 5
"""At one address from one place: a stranger elsewhere cannot lock somebody out with these."""
FAILURES_PER_EMAIL = 50
FAILURES_PER_ORIGIN = 40
PASSWORD_LENGTH = (10, 200)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session that just began; `token` is shown once."""

    token: str
    member_id: MemberId
    firm_id: FirmId
    expires_at: datetime


async def sign_in(db: Database, email: str, password: str, *, now: datetime, origin: str | None = None) -> SignedIn:
    """Begin a session. Raises Unauthenticated (one message), RateLimited, Forbidden for a firm that is over.

    The try is counted before the password is looked at, so that parallel tries cannot outrun the limit.
    """
    async with db.transaction() as tx:
        await store.lock_door(tx, email)
        await _limit_attempts(tx, email, origin, now=now)
        attempt = SignInAttemptRow(email=email, origin=origin, at=now)
        await store.insert(tx, attempt)
        member = await store.member_by_email(tx, email)
        firm = await store.firm(tx, member.firm_id) if member else None
    stored = member.password_hash if member else await asyncio.to_thread(_decoy)
    matches = await asyncio.to_thread(verify_password, password, stored)
    if not matches or member is None or firm is None or _has_left(member, firm):
        raise Unauthenticated(
            "The e-mail address or the password is wrong.",
            code="wrong_credentials",
            hint="check both; in the password capitals count",
        )
    if firm.state in OVER:
        refuse_unless_active(firm)
    async with db.transaction() as tx:
        (await tx.merge(attempt)).succeeded = True
        return await begin_session(tx, member, now=now, origin=origin)


async def begin_session(tx: AsyncSession, member: MemberRow, *, now: datetime, origin: str | None = None) -> SignedIn:
    """Open a session for a member who has proved who they are."""
    minted = mint(SESSION_PREFIX)
    session = SessionRow(
        id=new_id("ses"),
        member_id=member.id,
        token_hash=minted.token_hash,
        created_at=now,
        expires_at=now + SESSION_LIFE,
        origin=origin,
    )
    await store.insert(tx, session)
    me = Principal(PrincipalKind.MEMBER, member.id, member.firm_id)
    await audit.record(tx, "session.begin", session.id, by=me, now=now, firm_id=member.firm_id, origin=origin)
    return SignedIn(minted.token, MemberId(member.id), FirmId(member.firm_id), session.expires_at)


async def sign_out(tx: AsyncSession, bearer: str, *, now: datetime, origin: str | None = None) -> None:
    """End the session behind a token. A token that is no open session: no effect."""
    found = await store.session_of(tx, hash_secret(bearer))
    if found is None or found[0].ended_at is not None:
        return
    session, member, _ = found
    session.ended_at = now
    me = Principal(PrincipalKind.MEMBER, member.id, member.firm_id)
    await audit.record(tx, "session.end", session.id, by=me, now=now, firm_id=member.firm_id, origin=origin)


async def change_password(
    db: Database, member_id: MemberId, *, old: str, new: str, now: datetime, origin: str | None = None
) -> None:
    """Replace a password and end every session of the member. Raises InvalidInput when `old` is not the present one."""
    async with db.transaction() as tx:
        member = await store.member(tx, member_id)
        assert member is not None, "a signed-in member exists"
        await store.lock_door(tx, member.email)
        await _limit_attempts(tx, member.email, origin, now=now)
        attempt = SignInAttemptRow(email=member.email, origin=origin, at=now)
        await store.insert(tx, attempt)
    if not await asyncio.to_thread(verify_password, old, member.password_hash):
        raise InvalidInput(
            "The present password is wrong.", code="wrong_password", hint="type the one that you signed in with"
        )
    new_hash = await asyncio.to_thread(hash_password, new)
    async with db.transaction() as tx:
        (await tx.merge(attempt)).succeeded = True
        (await tx.merge(member)).password_hash = new_hash
        await store.end_sessions(tx, member_id, now=now)
        me = Principal(PrincipalKind.MEMBER, member.id, member.firm_id)
        await audit.record(tx, "member.password", member.id, by=me, now=now, firm_id=member.firm_id, origin=origin)


async def forget_old_attempts(db: Database, *, now: datetime) -> None:
    """Delete tries at passwords that no limit looks at any more."""
    async with db.transaction() as tx:
        await store.forget_attempts(tx, before=now - 4 * ATTEMPT_WINDOW)


async def _limit_attempts(tx: AsyncSession, email: str, origin: str | None, *, now: datetime) -> None:
    since = now - ATTEMPT_WINDOW
    limits = [
        (FAILURES_PER_EMAIL, await store.failures(tx, email=email, since=since)),
        (FAILURES_PER_PLACE, await store.failures(tx, email=email, origin=origin, since=since)),
    ]
    if origin is not None:
        limits.append((FAILURES_PER_ORIGIN, await store.failures(tx, origin=origin, since=since)))
    for limit, (count, first) in limits:
        if count >= limit and first is not None:
            wait = (first + ATTEMPT_WINDOW - now).total_seconds()
            raise RateLimited(
                "Too many wrong passwords.",
                code="too_many_attempts",
                hint=f"Try again in {max(1, round(wait / 60))} min.",
                retry_after_seconds=max(1.0, wait),
            )


def _has_left(member: MemberRow, firm: FirmRow) -> bool:
    return member.state != "active" and firm.state not in OVER


@cache
def _decoy() -> str:
    """What an unknown address is compared with, so that it takes as long as a known one."""
    return hash_password("nobody's password")
