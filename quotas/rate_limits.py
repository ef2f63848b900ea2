"""Rate limits on /v1 beyond a key's own: of a firm over all its keys, and of every firm, or one, at a model."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.db import notify
from kit.errors import InvalidInput
from quotas import audit
from quotas.applications import require_active
from quotas.vocabulary_people import KEYS_CHANNEL, FirmId, RateLimit, RateLimits


async def set_rate_limit(
    tx: AsyncSession,
    firm_id: FirmId | None,
    model: str | None,
    limits: RateLimits,
    *,
    by: Principal,
    now: datetime,
    reason: str | None = None,
    origin: str | None = None,
) -> RateLimit:
    """Set what a firm may do in all (no model), what every firm may do at a model (no firm), or one firm at one model.

    What is left out is not limited; a firm's own limits at a model stand in the place of every firm's. Gateways hear of
    it at once; a minute that runs is counted to its end as it was begun. Raises NotFound, Forbidden (firm not active),
    InvalidInput for neither a firm nor a model.
    """
    if firm_id is None and model is None:
        raise InvalidInput(
            "A rate limit is over a firm, a model, or a firm at a model.",
            code="rate_limit_over_nothing",
            hint="Name a firm_id, a model, or both.",
        )
    if firm_id is not None:
        await require_active(tx, firm_id)
    values = {"firm": firm_id or "", "model": model or "", **asdict(limits)}
    before = await _one(tx, values)
    await tx.execute(
        text("""
            INSERT INTO quotas.rate_limit AS l (firm_id, model, requests_per_minute, tokens_per_minute,
                requests_at_once, set_at, set_by, reason)
            VALUES (:firm, :model, :requests_per_minute, :tokens_per_minute, :requests_at_once, :now, :by, :reason)
            ON CONFLICT (firm_id, model) DO UPDATE SET requests_per_minute = excluded.requests_per_minute,
                tokens_per_minute = excluded.tokens_per_minute, requests_at_once = excluded.requests_at_once,
                set_at = excluded.set_at, set_by = excluded.set_by, reason = excluded.reason"""),
        values | {"now": now, "by": by.id, "reason": reason},
    )
    subject = "/".join(filter(None, (firm_id, model)))
    after = asdict(limits) | {"model": model}
    await audit.record(
        tx, "rate_limit.set", subject, by=by, now=now, firm_id=firm_id, origin=origin, reason=reason,
        before=None if before is None else asdict(before.limits), after=after,
    )  # fmt: skip
    await events.append(tx, "rate_limit.set", subject, after, now=now, firm_id=firm_id)
    await notify(tx, KEYS_CHANNEL, "*")
    found = await _one(tx, values)
    assert found is not None, "it was written just now"
    return found


async def rate_limits(tx: AsyncSession, firm_id: FirmId | None) -> Sequence[RateLimit]:
    """What is set for a firm and for every firm (None: for all firms), firms' own first."""
    rows = await tx.execute(
        text("""SELECT * FROM quotas.rate_limit
            WHERE CAST(:firm AS text) IS NULL OR firm_id IN (:firm, '')
            ORDER BY firm_id = '', firm_id, model"""),
        {"firm": firm_id},
    )
    return [_read(row) for row in rows]


async def limits_over(
    tx: AsyncSession, firm_ids: Collection[FirmId]
) -> dict[FirmId, tuple[tuple[str, RateLimits], ...]]:
    """Of each firm ("", the firm's in all) and (model, the firm's at it), where any is set; one query."""
    rows = await tx.execute(
        text("""SELECT * FROM quotas.rate_limit WHERE firm_id = '' OR firm_id = ANY(CAST(:firms AS text[]))
            ORDER BY firm_id = '', firm_id, model"""),
        {"firms": list(firm_ids)},
    )
    found: dict[FirmId, dict[str, RateLimits]] = {firm_id: {} for firm_id in firm_ids}
    for row in map(_read, rows):
        for firm_id in firm_ids if row.firm_id is None else (row.firm_id,):
            found[firm_id].setdefault(row.model or "", row.limits)  # a firm's own comes first
    return {
        firm_id: tuple((model, limits) for model, limits in of_firm.items() if limits != RateLimits())
        for firm_id, of_firm in found.items()
    }


async def _one(tx: AsyncSession, values: dict[str, Any]) -> RateLimit | None:
    found = await tx.execute(text("SELECT * FROM quotas.rate_limit WHERE firm_id = :firm AND model = :model"), values)
    row = found.one_or_none()
    return None if row is None else _read(row)


def _read(row: Any) -> RateLimit:
    limits = RateLimits(row.requests_per_minute, row.tokens_per_minute, row.requests_at_once)
    firm_id = FirmId(row.firm_id) if row.firm_id else None
    return RateLimit(firm_id, row.model or None, limits, row.set_at, row.set_by, row.reason)
