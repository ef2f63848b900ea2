"""Limits beyond nominal quota: GPUs and jobs at once, GPU time and tokens per month; per firm and project, dated."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.errors import InvalidInput, Refused
from kit.units import MILLI_PER_GPU, MS_PER_HOUR
from quotas import audit
from quotas.adapters import ceiling_store as store
from quotas.adapters import people_store
from quotas.adapters.ceiling_store import CeilingVersionRow
from quotas.allowances import reach_gateways
from quotas.applications import require_active
from quotas.limits import NO_CEILINGS, NOTHING, first_overrun, tighter
from quotas.projects import project_of
from quotas.statements import period_of
from quotas.vocabulary import Ceilings, EffectiveLimits, FirmId, LimitKind, Overrun, ProjectId, Use


async def set_ceilings(
    tx: AsyncSession,
    firm_id: FirmId,
    project_id: ProjectId | None,
    ceilings: Ceilings,
    *,
    by: Principal,
    now: datetime,
    effective_from: datetime | None = None,
    reason: str | None = None,
    origin: str | None = None,
) -> CeilingVersionRow:
    """Add a version for a firm (no project) or for one of its projects; limits left out are none.

    Raises NotFound, Forbidden (firm not active), InvalidInput for a start in the past.
    """
    await require_active(tx, firm_id)
    if project_id is not None:
        await project_of(tx, project_id, firm_id)
    start = effective_from or now
    if start < now:
        raise InvalidInput("A limit cannot change the past.", code="limit_backdated", hint="Leave the start out: now.")
    if ceilings.tokens_per_period is not None:
        await reach_gateways(tx, firm_id, now=now)
    await store.lock(tx, firm_id)
    before = {row.project_id: row for row in await store.in_force(tx, firm_id, at=start)}.get(project_id)
    row = CeilingVersionRow(
        firm_id=firm_id,
        project_id=project_id,
        **asdict(ceilings),
        effective_from=start,
        set_at=now,
        set_by=by.id,
        reason=reason,
    )
    await people_store.insert(tx, row)
    subject, after = project_id or firm_id, {**asdict(ceilings), "effective_from": start}
    await audit.record(
        tx, "limit.set", subject, by=by, now=now, firm_id=firm_id, origin=origin, reason=reason,
        before=asdict(_ceilings(before)), after=after,
    )  # fmt: skip
    await events.append(tx, "limit.set", subject, after, now=now, firm_id=firm_id)
    return row


async def ceiling_history(tx: AsyncSession, firm_id: FirmId) -> Sequence[CeilingVersionRow]:
    """Every version ever written for a firm and its projects, newest first; those to come too."""
    return await store.history(tx, firm_id)


async def effective_limits(
    tx: AsyncSession, firm_id: FirmId, project_id: ProjectId, *, at: datetime, admitting: bool = False
) -> EffectiveLimits:
    """The ceilings in force over a project's work at any instant.

    `admitting`: where any is set, whoever else admits work of this firm waits until this transaction ends.
    """
    limits = await _load(tx, firm_id, project_id, at=at)
    if admitting and (limits.firm, limits.project) != (NO_CEILINGS, NO_CEILINGS):
        await store.lock(tx, firm_id)
        limits = await _load(tx, firm_id, project_id, at=at)
    return limits


async def used_this_month(tx: AsyncSession, firm_id: FirmId, *, at: datetime) -> Mapping[ProjectId, Use]:
    """Project → GPU time and tokens used in the Shanghai month that `at` falls into."""
    used = await store.used_in(tx, firm_id, period_of(at))
    return {ProjectId(project): Use(gpu_ms=gpu_ms, tokens=tokens) for project, (gpu_ms, tokens) in used.items()}


async def require_within(
    tx: AsyncSession, limits: EffectiveLimits, *, in_hand: Mapping[ProjectId, Use], asked: Use
) -> None:
    """Return if `asked` fits beside what is `in_hand` (work not over, by project) and what the month has used.

    Raises Refused (`limit_<kind>`) naming the limit, what counts against it, and what was asked.
    """
    spent = await used_this_month(tx, limits.firm_id, at=limits.at)
    firm = NOTHING
    for use in (*spent.values(), *in_hand.values()):
        firm = firm.plus(use)
    project = spent.get(limits.project_id, NOTHING).plus(in_hand.get(limits.project_id, NOTHING))
    over = first_overrun(limits, firm=firm, project=project, asked=asked)
    if over is not None:
        raise _refusal(over)


def _refusal(over: Overrun) -> Refused:
    limit, used, asked = (_said(over.kind, amount) for amount in (over.limit, over.used, over.asked))
    when = {
        LimitKind.JOBS_AT_ONCE: "wait until some of its work is over",
        LimitKind.GPUS_AT_ONCE: "wait until some of its work is over, or ask for less",
        LimitKind.GPU_TIME: "set a shorter max_runtime_seconds, or wait for the next month",
        LimitKind.TOKENS: "wait for the next month",
    }
    return Refused(
        f"The {over.scope}'s limit is {limit}; {used} count against it and {asked} were asked for.",
        code=f"limit_{over.kind}",
        hint=f"{when[over.kind]}; a higher limit is an administrator's to set",
        details={"limit": over.limit, "used": over.used, "asked": over.asked, "scope": over.scope},
    )


def _said(kind: LimitKind, amount: int) -> str:
    match kind:
        case LimitKind.JOBS_AT_ONCE:
            return f"{amount} jobs at once"
        case LimitKind.GPUS_AT_ONCE:
            return f"{amount / MILLI_PER_GPU:g} GPUs at once"
        case LimitKind.GPU_TIME:
            return f"{amount / MS_PER_HOUR:.2f} GPU-hours a month"
        case LimitKind.TOKENS:
            return f"{amount:,} tokens a month"


async def _load(tx: AsyncSession, firm_id: FirmId, project_id: ProjectId, *, at: datetime) -> EffectiveLimits:
    known = await store.over_project(tx, firm_id, project_id, at=at)
    firm, project = (Ceilings(*known[whose]) if whose in known else NO_CEILINGS for whose in (None, project_id))
    return EffectiveLimits(firm_id, project_id, at, firm, project, tighter(firm, project))


def _ceilings(row: CeilingVersionRow | None) -> Ceilings:
    if row is None:
        return NO_CEILINGS
    return Ceilings(row.gpu_milli_at_once, row.jobs_at_once, row.gpu_ms_per_period, row.tokens_per_period)
