"""A firm's way in and out: it applies, is reviewed, works, is suspended, closes. Each step is an event, audited."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import SYSTEM, Principal, hash_password
from kit.db import Database, notify
from kit.errors import Forbidden, InvalidInput, RateLimited
from kit.ids import new_id
from quotas import audit
from quotas.access import firm_not_found
from quotas.adapters import people_store as store
from quotas.adapters.tables import FirmRow, MemberRow, ProjectRow
from quotas.firms import MUST_SAY_WHY, OVER, after, triage
from quotas.uscc import check_uscc
from quotas.vocabulary import (
    DEFAULT_PROJECT,
    KEYS_CHANNEL,
    FirmId,
    FirmKind,
    FirmState,
    FirmView,
    IndustryCluster,
    ReviewStep,
    Role,
)

APPLICATIONS_PER_HOUR = 60
"""From one address: enough for a company fair, too few to fill the queue."""


@dataclass(frozen=True, slots=True)
class Application:
    """What a firm sends to be let in. The owner becomes its first member."""

    uscc: str
    name: str
    industry_cluster: IndustryCluster
    district: str
    contact_name: str
    contact_email: str
    contact_phone: str | None
    owner_name: str
    owner_email: str
    password: str


async def apply(db: Database, application: Application, *, now: datetime, origin: str | None = None) -> FirmRow:
    """Register an application; its firm waits in the review queue.

    Raises InvalidInput for what cannot be a USCC, Conflict for one that is registered, RateLimited.
    """
    checked = check_uscc(application.uscc)
    start = triage(checked.doubt)
    password_hash = await asyncio.to_thread(hash_password, application.password)
    async with db.transaction() as tx:
        await _limit_applications(tx, origin, now=now)
        firm = FirmRow(
            id=new_id("firm"),
            kind=FirmKind.COMPANY,
            name=application.name,
            state=start.state,
            uscc=checked.uscc,
            doubts=list(start.doubts),
            industry_cluster=application.industry_cluster,
            district=application.district,
            contact_name=application.contact_name,
            contact_email=application.contact_email,
            contact_phone=application.contact_phone,
            applied_at=now,
            state_since=now,
        )
        await store.insert(tx, firm)
        owner = MemberRow(
            id=new_id("mem"),
            firm_id=firm.id,
            email=application.owner_email,
            name=application.owner_name,
            password_hash=password_hash,
            roles=[Role.FIRM_OWNER],
            state="active",
            created_at=now,
        )
        project = ProjectRow(id=new_id("prj"), firm_id=firm.id, name=DEFAULT_PROJECT, created_at=now)
        await store.insert(tx, owner, project)
        seen = {"uscc": firm.uscc, "name": firm.name, "state": firm.state, "doubts": firm.doubts, "owner": owner.id}
        await audit.record(tx, "firm.apply", firm.id, by=SYSTEM, now=now, firm_id=firm.id, origin=origin, after=seen)
        await _announce(tx, firm, now=now)
    return firm


async def review(
    tx: AsyncSession,
    firm_id: FirmId,
    step: ReviewStep,
    *,
    by: Principal,
    now: datetime,
    reason: str | None = None,
    origin: str | None = None,
) -> FirmRow:
    """Take a firm one step through its life. Raises NotFound, Conflict (illegal step), InvalidInput (no reason)."""
    firm = await store.firm(tx, firm_id, lock=True)
    if firm is None or firm.kind == FirmKind.PLATFORM:
        raise firm_not_found(firm_id)
    before = {"state": firm.state, "reason": firm.state_reason}
    following = after(FirmState(firm.state), step)
    _check_reason(firm, step, reason)
    firm.state, firm.state_reason, firm.state_since = following, reason, now
    if step in {ReviewStep.TAKE, ReviewStep.APPROVE, ReviewStep.REJECT}:
        firm.reviewer_id = by.id
    if following in OVER:
        await _wind_up(tx, firm, now=now)
    await notify(tx, KEYS_CHANNEL, "*")
    await audit.record(
        tx, f"firm.{step}", firm.id, by=by, now=now, firm_id=firm.id, origin=origin, reason=reason,
        before=before, after={"state": firm.state, "reason": reason},
    )  # fmt: skip
    await _announce(tx, firm, now=now)
    return firm


async def queue(
    tx: AsyncSession, *, states: Sequence[FirmState] = (), after: str = "", limit: int = 100
) -> Sequence[FirmRow]:
    """Companies in the order they applied; `after` is the last id of an earlier page."""
    return await store.firms(tx, states=[state.value for state in states], after=after, limit=limit)


async def firm_row(tx: AsyncSession, firm_id: FirmId) -> FirmRow:
    """Everything known about a firm. Raises NotFound."""
    firm = await store.firm(tx, firm_id)
    if firm is None:
        raise firm_not_found(firm_id)
    return firm


async def firm_of(tx: AsyncSession, firm_id: FirmId) -> FirmView:
    """The firm as other packages see it. Raises NotFound."""
    return view(await firm_row(tx, firm_id))


async def halted_firms(tx: AsyncSession, firm_ids: Sequence[FirmId]) -> dict[FirmId, str]:
    """Of these firms those that are suspended or closed, each with the sentence that says why its work stops."""
    rows = await store.firms_in(tx, firm_ids, states=[FirmState.SUSPENDED, FirmState.CLOSED])
    return {FirmId(row.id): f"the firm is {row.state}: {row.state_reason or 'no reason given'}" for row in rows}


async def require_active(tx: AsyncSession, firm_id: FirmId) -> FirmView:
    """The firm, if it may work now. Raises NotFound, or Forbidden naming its state and the reason for it."""
    firm = await firm_row(tx, firm_id)
    refuse_unless_active(firm)
    return view(firm)


def refuse_unless_active(firm: FirmRow) -> None:
    """Return for an active firm. Raises Forbidden (`firm_<state>`) with the reason its people should read."""
    if firm.state == FirmState.ACTIVE:
        return
    because = f": {firm.state_reason}" if firm.state_reason else ""
    waiting = firm.state in {FirmState.APPLIED, FirmState.IN_REVIEW}
    raise Forbidden(
        f"{firm.name} is {firm.state.replace('_', ' ')}{because}.",
        code=f"firm_{firm.state}",
        hint="An administrator has to approve it first." if waiting else "Ask the platform's administrators.",
        details={"firm_id": firm.id, "state": firm.state},
    )


def view(firm: FirmRow) -> FirmView:
    """The public side of a row."""
    return FirmView(
        id=FirmId(firm.id),
        kind=FirmKind(firm.kind),
        name=firm.name,
        state=FirmState(firm.state),
        uscc=firm.uscc,
        industry_cluster=IndustryCluster(firm.industry_cluster) if firm.industry_cluster else None,
        district=firm.district,
    )


def _check_reason(firm: FirmRow, step: ReviewStep, reason: str | None) -> None:
    if reason:
        return
    if step in MUST_SAY_WHY:
        raise InvalidInput(f"To {step} a firm, say why; its people will read it.", code="reason_missing")
    if step is ReviewStep.APPROVE and firm.doubts:
        raise InvalidInput(
            "This application has open doubts; say how they were resolved.",
            code="reason_missing",
            hint=" ".join(firm.doubts),
            details={"doubts": firm.doubts},
        )


async def _wind_up(tx: AsyncSession, firm: FirmRow, *, now: datetime) -> None:
    await store.revoke_keys(tx, firm.id, why=f"firm_{firm.state}", now=now)
    await store.revoke_invitations(tx, firm.id, now=now)
    await store.let_members_go(tx, firm.id, now=now)


async def _limit_applications(tx: AsyncSession, origin: str | None, *, now: datetime) -> None:
    if origin is None:
        return
    hour = timedelta(hours=1)
    if await store.applications_since(tx, origin, now - hour) >= APPLICATIONS_PER_HOUR:
        raise RateLimited(
            f"{APPLICATIONS_PER_HOUR} firms applied from this address within an hour.",
            code="too_many_applications",
            hint="apply again in an hour",
            retry_after_seconds=hour.total_seconds(),
        )


async def _announce(tx: AsyncSession, firm: FirmRow, *, now: datetime) -> None:
    body = {"state": firm.state, "reason": firm.state_reason, "name": firm.name}
    await events.append(tx, f"firm.{firm.state}", firm.id, body, now=now, firm_id=firm.id)
