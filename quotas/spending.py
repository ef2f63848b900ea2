"""What may still be spent this month: money under hard budgets, tokens under the month's limits. Exact, under a lock.

Money counts from the moment it is put aside: charges of the month, open holds and what gateways have leased. So no
number of jobs, requests and gateways at once passes a budget. Where no rule is over a firm, nothing is locked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import NoMoney, Refused
from kit.units import format_yuan
from quotas.adapters import budget_store, ceiling_store, people_store
from quotas.statements import period_of
from quotas.vocabulary import FirmId, KeyId, LimitKind, Payer, ProjectId

Budget = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Room:
    """What may still be put aside for a payer; None: no rule says less. `budget` is the one with the least left."""

    micro_yuan: int | None = None
    tokens: int | None = None
    budget: Budget | None = None
    tokens_limit: int | None = None

    def refusal(self, *, micro_yuan: int = 0, tokens: int = 0) -> Refused | None:
        """Why so much more may not be put aside; None when it may."""
        if self.micro_yuan is not None and micro_yuan > self.micro_yuan:
            assert self.budget is not None, "a budget says so"
            return used_up(self.budget, asked=micro_yuan)
        if self.tokens is not None and tokens > self.tokens:
            return Refused(
                f"Of {self.tokens_limit:,} tokens a month {max(0, self.tokens):,} are left; this may take {tokens:,}.",
                code=f"limit_{LimitKind.TOKENS}",
                hint="Lower max_tokens, wait for the next month, or ask an administrator for a higher limit.",
                details={"limit": self.tokens_limit, "left": max(0, self.tokens), "asked": tokens},
            )
        return None

    def of(self, *, micro_yuan: int, tokens: int) -> tuple[int, int]:
        """As much of what is asked for as there is room for."""
        money = micro_yuan if self.micro_yuan is None else max(0, min(micro_yuan, self.micro_yuan))
        return money, tokens if self.tokens is None else max(0, min(tokens, self.tokens))


UNBOUND = Room()


def used_up(budget: Budget, *, asked: int = 0) -> NoMoney:
    """A hard budget refuses `asked` micro-yuan more."""
    whose = "project's" if budget["project_id"] else "key's" if budget["key_id"] else "firm's"
    spent, held = budget["spent"], budget["held"] + budget["leased"]
    more = f", this may cost {format_yuan(asked)}" if asked else ""
    return NoMoney(
        f"The {whose} budget of {format_yuan(budget['amount'])} a month is used up: {format_yuan(spent)} are spent, "
        f"{format_yuan(held)} put aside{more}.",
        code="budget_reached",
        hint="Raise the budget, wait until work that is under way is over, or wait for the next month.",
        details={"budget_id": budget["id"], "amount": budget["amount"], "spent": spent, "held": held, "asked": asked},
    )


async def payer_of(tx: AsyncSession, firm_id: FirmId, project_id: ProjectId | None, key_id: KeyId | None) -> Payer:
    """Whose spending a workload is; `key_id` is the API key that asked for it, if one did."""
    line = None if key_id is None else await people_store.line_of(tx, key_id)
    return Payer(firm_id, project_id, None if line is None else KeyId(line))


async def take_turns(tx: AsyncSession, payer: Payer) -> bool:
    """Whether a rule is over the firm's spending; then nobody else puts aside money of it until this commits.

    Call it before the ledger is touched: whoever waits here holds no balance.
    """
    if not await budget_store.spending_is_ruled(tx, payer.firm_id):
        return False
    await budget_store.lock_spending(tx, payer.firm_id)
    return True


async def room_of(tx: AsyncSession, payer: Payer, *, now: datetime, but_lease: str | None = None) -> Room:
    """What may still be put aside for `payer`, others waiting meanwhile. Tokens leased as `but_lease` do not count."""
    if not await take_turns(tx, payer):
        return UNBOUND
    tightest: Budget | None = None
    for row in await budget_store.budgets(tx, period=period_of(now), firm_id=payer.firm_id):
        if row["hard_stop"] and over(row, payer) and (tightest is None or left_of(row) < left_of(tightest)):
            tightest = row
    tokens, limit = await _tokens_left(tx, payer, now=now, but_lease=but_lease)
    return Room(None if tightest is None else left_of(tightest), tokens, tightest, limit)


async def require_room(tx: AsyncSession, payer: Payer, micro_yuan: int, *, now: datetime) -> None:
    """Return if so much may be put aside, and let nobody else do so until this commits.

    Raises NoMoney (`budget_reached`).
    """
    refusal = (await room_of(tx, payer, now=now)).refusal(micro_yuan=micro_yuan)
    if refusal is not None:
        raise refusal


async def require_budget(tx: AsyncSession, payer: Payer, least: int, *, now: datetime) -> None:
    """Return unless what the month has spent leaves no room for `least` even when all that is put aside comes back.

    Raises NoMoney (`budget_reached`).
    """
    for row in await budget_store.budgets(tx, period=period_of(now), firm_id=payer.firm_id):
        if row["hard_stop"] and over(row, payer) and row["spent"] + max(1, least) > row["amount"]:
            raise used_up(row, asked=least)


def over(budget: Budget, payer: Payer) -> bool:
    """Whether a budget of the payer's firm is over its spending."""
    return budget["project_id"] in (None, payer.project_id) and budget["key_id"] in (None, payer.line_id)


def left_of(budget: Budget) -> int:
    """What a budget leaves to put aside; below zero when it was lowered under what was put aside."""
    return budget["amount"] - budget["spent"] - budget["held"] - budget["leased"]


async def _tokens_left(
    tx: AsyncSession, payer: Payer, *, now: datetime, but_lease: str | None
) -> tuple[int | None, int | None]:
    """Tokens left this month under the tighter of the firm's and the project's limit, and that limit."""
    versions = await ceiling_store.in_force(tx, payer.firm_id, at=now)
    ruled = [(row.tokens_per_period, row.project_id) for row in versions if row.project_id in (None, payer.project_id)]
    if all(limit is None for limit, _ in ruled):
        return None, None
    used = await ceiling_store.used_in(tx, payer.firm_id, period_of(now))
    leased = await ceiling_store.tokens_leased(tx, payer.firm_id, but=but_lease)
    found: list[tuple[int, int]] = []
    for limit, of in ruled:
        if limit is not None:
            spent = sum(tokens for name, (_, tokens) in used.items() if of in (None, name))
            found.append((limit - spent - sum(n for name, n in leased.items() if of in (None, name)), limit))
    return min(found)
