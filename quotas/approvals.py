"""Four eyes on money: above a set amount one administrator proposes and another one approves, or refuses and says why.

A large sum in pieces is a large sum: what one administrator did alone for a firm within a day counts together. A change
of the amounts themselves is money too: raising them is proposed, lowering them is done at once.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from kit import events
from kit.auth import Principal
from kit.errors import Conflict, Forbidden, InvalidInput, NotFound
from kit.ids import new_id
from kit.units import format_yuan
from quotas import audit
from quotas.adapters import people_store
from quotas.adapters.approval_tables import ApprovalPolicyRow, ProposalRow
from quotas.vocabulary import FirmId, MoneyAction, ProposalState

COUNTED_TOGETHER: Final = timedelta(hours=24)
Perform = Callable[[AsyncSession, ProposalRow], Awaitable[str]]
"""Does what was proposed and returns the id of what came of it."""


async def policy(tx: AsyncSession) -> ApprovalPolicyRow:
    """The amounts in force: what is above them needs a second administrator."""
    query = select(ApprovalPolicyRow).order_by(col(ApprovalPolicyRow.seq).desc()).limit(1)
    return (await tx.execute(query)).scalar_one()


async def set_policy(
    tx: AsyncSession,
    *,
    amount_above: int,
    rate_above: int,
    reason: str,
    by: Principal,
    now: datetime,
    origin: str | None = None,
) -> ApprovalPolicyRow:
    """Set the amounts. Whether that may be done at once, `needs_second` has decided."""
    before = await policy(tx)
    row = ApprovalPolicyRow(amount_above=amount_above, rate_above=rate_above, set_at=now, set_by=by.id, reason=reason)
    await people_store.insert(tx, row)
    await audit.record(
        tx, "approval.policy", "platform", by=by, now=now, origin=origin, reason=reason,
        before=_amounts(before), after=_amounts(row),
    )  # fmt: skip
    return row


def needs_second(action: MoneyAction, amount: int, limits: ApprovalPolicyRow) -> bool:
    """Whether so much needs a second administrator.

    A tariff's amount is its highest price, that of a centre's contract what it pays for the centre's dearest GPU-hour.
    A discount always does: what it will give away nobody knows when it is granted.
    """
    match action:
        case MoneyAction.DISCOUNT:
            return True
        case MoneyAction.TARIFF | MoneyAction.CENTRE_CONTRACT:
            return amount > limits.rate_above
        case _:
            return amount > limits.amount_above


async def alone_so_far(
    tx: AsyncSession, action: MoneyAction, key: str, firm_id: FirmId, *, by: Principal, now: datetime
) -> int:
    """Micro-yuan that this administrator moved alone for a firm in the 24 hours before, whatever the kind.

    Until commit nobody else adds to it. The deed with this key itself does not count: sent again, it is done once.
    """
    await tx.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('quotas.lone_deed:' || :by || ':' || :firm, 0))"),
        {"by": by.id, "firm": firm_id},
    )
    query = text("""SELECT coalesce(sum(amount), 0)::bigint FROM quotas.lone_deed
        WHERE firm_id = :firm AND done_by = :by AND done_at > :since AND (action, key) <> (:action, :key)""")
    names = {"firm": firm_id, "by": by.id, "since": now - COUNTED_TOGETHER, "action": action, "key": key}
    return int((await tx.execute(query, names)).scalar_one())


async def done_alone(tx: AsyncSession, action: MoneyAction, key: str, firm_id: FirmId) -> bool:
    """Whether the deed with this key was done for the firm already: sent again, it is answered as it was."""
    query = text("SELECT EXISTS (SELECT FROM quotas.lone_deed WHERE (action, key, firm_id) = (:action, :key, :firm))")
    return bool((await tx.execute(query, {"action": action, "key": key, "firm": firm_id})).scalar_one())


async def note_alone(
    tx: AsyncSession, action: MoneyAction, key: str, firm_id: FirmId, amount: int, *, by: Principal, now: datetime
) -> None:
    """Remember that one administrator did this alone."""
    await tx.execute(
        text("""INSERT INTO quotas.lone_deed (action, key, firm_id, amount, done_by, done_at)
            VALUES (:action, :key, :firm, :amount, :by, :now) ON CONFLICT DO NOTHING"""),
        {"action": action, "key": key, "firm": firm_id, "amount": amount, "by": by.id, "now": now},
    )


def raises_policy(limits: ApprovalPolicyRow, *, amount_above: int, rate_above: int) -> bool:
    """Whether new amounts let anything pass that needed two before."""
    return amount_above > limits.amount_above or rate_above > limits.rate_above


async def propose(
    tx: AsyncSession,
    action: MoneyAction,
    amount: int,
    body: Mapping[str, Any],
    *,
    key: str,
    firm_id: FirmId | None,
    by: Principal,
    now: datetime,
    origin: str | None = None,
) -> ProposalRow:
    """Keep what shall be done until it is decided. The same key twice is one proposal.

    Raises Conflict (`key_reused`) for the same key with other content.
    """
    known = await _by_key(tx, action, key)
    if known is not None:
        if known.body != body:
            raise Conflict(f"The key {key!r} was used for something else.", code="key_reused", hint="Use a new key.")
        return known
    row = ProposalRow(
        id=new_id("apr"),
        action=action,
        key=key,
        firm_id=firm_id,
        amount=amount,
        body=dict(body),
        state=ProposalState.OPEN,
        proposed_by=by.id,
        proposed_at=now,
    )
    await people_store.insert(tx, row)
    await _record(tx, row, "approval.propose", by=by, now=now, origin=origin)
    return row


async def proposals(tx: AsyncSession, *, state: ProposalState | None) -> Sequence[ProposalRow]:
    """Proposals, newest first."""
    query = select(ProposalRow).order_by(col(ProposalRow.id).desc()).limit(500)
    if state is not None:
        query = query.where(ProposalRow.state == state)
    return (await tx.execute(query)).scalars().all()


async def proposal_of(tx: AsyncSession, approval_id: str) -> ProposalRow:
    """The proposal, locked. Raises NotFound."""
    row = await tx.get(ProposalRow, approval_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound(
            f"There is no proposal {approval_id}.", code="proposal_not_found", hint="see: heliu approval list"
        )
    return row


async def approve(
    tx: AsyncSession, row: ProposalRow, perform: Perform, *, by: Principal, now: datetime, origin: str | None = None
) -> ProposalRow:
    """Do what was proposed, in this transaction. Raises Forbidden to who proposed it, Conflict when it is decided."""
    _must_be_open(row)
    if by.id == row.proposed_by:
        raise Forbidden(
            "Who proposed it cannot approve it.", code="four_eyes", hint="Ask another administrator to look at it."
        )
    row.result_id = await perform(tx, row)
    row.state, row.decided_by, row.decided_at = ProposalState.APPROVED, by.id, now
    await tx.flush()
    await _record(tx, row, "approval.approve", by=by, now=now, origin=origin)
    return row


async def refuse(
    tx: AsyncSession, row: ProposalRow, *, reason: str, by: Principal, now: datetime, origin: str | None = None
) -> ProposalRow:
    """Refuse it, or take one's own back. Raises Conflict when it is decided, InvalidInput without a reason."""
    _must_be_open(row)
    if not reason:
        raise InvalidInput("Say why; who proposed it will read it.", code="reason_missing")
    row.state, row.decided_by, row.decided_at, row.decision_reason = ProposalState.REFUSED, by.id, now, reason
    await tx.flush()
    await _record(tx, row, "approval.refuse", by=by, now=now, origin=origin, reason=reason)
    return row


def _must_be_open(row: ProposalRow) -> None:
    if row.state != ProposalState.OPEN:
        raise Conflict(
            f"This proposal is {row.state} already.",
            code="proposal_decided",
            hint="see what became of it: heliu approval list",
        )


def _amounts(row: ApprovalPolicyRow) -> dict[str, str]:
    return {"amount_above": format_yuan(row.amount_above), "rate_above": format_yuan(row.rate_above)}


async def _by_key(tx: AsyncSession, action: MoneyAction, key: str) -> ProposalRow | None:
    query = select(ProposalRow).where(ProposalRow.action == action, ProposalRow.key == key)
    return (await tx.execute(query)).scalar_one_or_none()


async def _record(
    tx: AsyncSession,
    row: ProposalRow,
    action: str,
    *,
    by: Principal,
    now: datetime,
    origin: str | None,
    reason: str | None = None,
) -> None:
    after = {
        "action": row.action,
        "amount_micro_yuan": row.amount,
        "firm_id": row.firm_id,
        "state": row.state,
        "proposed_by": row.proposed_by,
        "result_id": row.result_id,
    }
    await audit.record(tx, action, row.id, by=by, now=now, origin=origin, reason=reason, after=after)
    await events.append(tx, action, row.id, {"action": row.action, "state": row.state}, now=now)
