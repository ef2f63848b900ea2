"""Monthly budgets per firm, project and key: thresholds that alert, and a hard stop where it is wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.db import Database, notify
from kit.errors import Conflict, InvalidInput, NotFound
from kit.ids import new_id
from quotas import audit, authentication
from quotas.adapters import budget_store as store
from quotas.adapters import people_store
from quotas.alerts import HARD_STOP_AT, crossed
from quotas.allowances import reach_gateways
from quotas.applications import require_active
from quotas.keys import key_not_found, key_row
from quotas.projects import project_of
from quotas.rate_limits import limits_over
from quotas.statements import bounds, may_close, period_of
from quotas.vocabulary import KEYS_CHANNEL, FirmId, KeyGrant, KeyId, ProjectId


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """A month's budget of a firm, or of one of its projects or keys (a key's: of every key it is rotated into)."""

    firm_id: FirmId
    amount: int
    thresholds: tuple[int, ...]
    hard_stop: bool
    project_id: ProjectId | None = None
    key_id: KeyId | None = None


async def set_budget(
    tx: AsyncSession, spec: BudgetSpec, *, by: Principal, now: datetime, origin: str | None = None
) -> str:
    """Make a budget; returns its id. Raises Conflict (`budget_exists`), NotFound for a foreign project or key."""
    await require_active(tx, spec.firm_id)
    if spec.project_id is not None and spec.key_id is not None:
        raise InvalidInput(
            "A budget is a firm's, a project's or a key's.",
            code="budget_of_two",
            hint="leave out the project or the key; a key has its project already",
        )
    if spec.project_id is not None:
        await project_of(tx, spec.project_id, spec.firm_id)
    line: str | None = None
    if spec.key_id is not None:
        key = await key_row(tx, spec.key_id)
        if key.firm_id != spec.firm_id:
            raise key_not_found(spec.key_id)
        line = key.line_id
    thresholds = set(spec.thresholds) | ({HARD_STOP_AT} if spec.hard_stop else set())
    row = {
        "id": new_id("bud"),
        "firm_id": spec.firm_id,
        "project_id": spec.project_id,
        "key_id": line,
        "amount": spec.amount,
        "thresholds": sorted(thresholds),
        "hard_stop": spec.hard_stop,
        "created_by": by.id,
        "created_at": now,
    }
    if spec.hard_stop:
        await reach_gateways(tx, spec.firm_id, now=now)
    await store.lock_spending(tx, spec.firm_id)
    if not await store.insert(tx, "budget", row):
        raise Conflict("It has a budget already.", code="budget_exists", hint="End that one first.")
    await audit.record(
        tx, "budget.set", row["id"], by=by, now=now, firm_id=spec.firm_id, origin=origin, after={**row, "at": now}
    )
    return row["id"]


async def budgets_of(tx: AsyncSession, firm_id: FirmId, *, now: datetime) -> Sequence[Mapping[str, Any]]:
    """A firm's budgets with what their month has spent."""
    return await store.budgets(tx, period=period_of(now), firm_id=firm_id)


async def budget_row(tx: AsyncSession, budget_id: str) -> Mapping[str, Any]:
    """The budget, locked. Raises NotFound."""
    row = await store.one(tx, "budget", budget_id)
    if row is None:
        raise budget_not_found(budget_id)
    return row


async def end_budget(
    tx: AsyncSession, row: Mapping[str, Any], *, by: Principal, now: datetime, origin: str | None = None
) -> None:
    """End a budget; whatever it stopped goes on."""
    await store.lock_spending(tx, row["firm_id"])
    await store.end(tx, "budget", row["id"], now=now)
    await audit.record(tx, "budget.end", row["id"], by=by, now=now, firm_id=row["firm_id"], origin=origin)
    await notify(tx, KEYS_CHANNEL, "*")


async def load_key(tx: AsyncSession, bearer: str, *, now: datetime) -> KeyGrant:
    """What an API key allows, as `authentication.load_key` says, and what of its spending is leased apart."""
    (grant,) = await _with_rules(tx, [await authentication.load_key(tx, bearer, now=now)], now=now)
    return grant


async def key_limits(tx: AsyncSession, key_id: KeyId, *, now: datetime) -> KeyGrant | None:
    """What a key allows now, revoked and expired ones included (see `KeyGrant.usable`); None when there is none."""
    return (await keys_limits(tx, [key_id], now=now)).get(key_id)


async def keys_limits(tx: AsyncSession, key_ids: Sequence[KeyId], *, now: datetime) -> dict[KeyId, KeyGrant]:
    """The same of any number of keys, those that there are, in a handful of queries."""
    grants = await _with_rules(tx, await authentication.keys_limits(tx, key_ids), now=now)
    return {grant.key_id: grant for grant in grants}


async def watch_budgets(db: Database, now: datetime) -> int:
    """Raise an alert for each threshold that was reached, once a month, and queue its messages. Returns how many.

    The month before is watched until its grace is over: its last usage comes late.
    """
    this = period_of(now)
    before = period_of(bounds(this)[0] - timedelta(days=1))
    made = 0
    async with db.transaction() as tx:
        for period in [this] if may_close(before, now) else [before, this]:
            made += await _watch(tx, period, now=now)
    return made


async def _watch(tx: AsyncSession, period: str, *, now: datetime) -> int:
    made, ends_at = 0, bounds(period)[1]
    known = await store.raised(tx, period)
    for row in await store.budgets(tx, period=period):
        if row["created_at"] < ends_at:
            for threshold in crossed(row["thresholds"], spent=row["spent"], amount=row["amount"]):
                if (row["id"], threshold) not in known:
                    made += await _raise(tx, row, threshold, period, now=now)
    return made


def budget_not_found(budget_id: str) -> NotFound:
    """The one answer for a budget that does not exist and for another firm's."""
    return NotFound(f"There is no budget {budget_id}.", code="budget_not_found", hint="see: heliu budget list")


async def _raise(tx: AsyncSession, row: Mapping[str, Any], threshold: int, period: str, *, now: datetime) -> int:
    alert = {
        "id": new_id("alr"),
        "budget_id": row["id"],
        "firm_id": row["firm_id"],
        "period": period,
        "threshold": threshold,
        "amount": row["amount"],
        "spent": row["spent"],
        "at": now,
    }
    if not await store.insert(tx, "alert", alert):
        return 0
    for channel in await store.channels(tx, row["firm_id"]):
        message = {"id": new_id("dlv"), "alert_id": alert["id"], "channel_id": channel["id"], "state": "waiting"}
        await store.insert(tx, "delivery", {**message, "next_at": now})
    await events.append(tx, "budget.reached", row["id"], alert, now=now, firm_id=row["firm_id"])
    return 1


async def _with_rules(tx: AsyncSession, grants: Sequence[KeyGrant], *, now: datetime) -> list[KeyGrant]:
    """The grants with what is shared with other keys of their firms: rates, and whose spending is leased apart."""
    firm_ids = {grant.firm_id for grant in grants}
    rates = await limits_over(tx, firm_ids)
    ruled = await store.ruled_firms(tx, firm_ids)
    under_rules = [grant for grant in grants if grant.firm_id in ruled]
    if not under_rules:
        return [replace(grant, rates=rates[grant.firm_id]) for grant in grants]
    lines = await people_store.lines_of(tx, [grant.key_id for grant in under_rules])
    whose = {grant.key_id: (grant.firm_id, grant.project_id, lines[grant.key_id]) for grant in under_rules}
    rules = await store.ruled_apart(tx, set(whose.values()), now=now)

    def with_rules(grant: KeyGrant) -> KeyGrant:
        if grant.key_id not in whose:
            return grant
        _, project_id, line = of = whose[grant.key_id]
        apart = (project_id, line) if rules[of]["key"] else (project_id,) if rules[of]["project"] else ()
        return replace(grant, own_purse=apart, counts_tokens=rules[of]["tokens"])

    return [replace(with_rules(grant), rates=rates[grant.firm_id]) for grant in grants]
