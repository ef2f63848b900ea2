"""The ledger as arithmetic: accounts, transfers, and the ladder of named refusals.

`Book` is the ledger in memory, single-threaded and obvious. PostgreSQL does the same work in `quotas.post` (see
adapters/migrations/0004_posting.py and 0021_mixed_postings.py); a property test holds the two equal, and
ledger_checks.py judges both.
Every transfer debits one account and credits another in one asset. A *bounded* account never shows
`credits - debits - pending debits` below its floor (0, or minus its credit line).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from kit.units import MAX_AMOUNT
from quotas.vocabulary import RefusalReason

CNY = "CNY"
RESIDUE = "RESIDUE"  # in RESIDUE_UNIT-ths of a micro-yuan: what rounding left over
STORAGE_RESIDUE = "RESIDUE:storage"  # in BYTE_HOURS_PER_GB_MONTH-ths of a micro-yuan


def gpu_asset(pool: str) -> str:
    """The asset in which a pool's time is counted: GPU milliseconds of that pool."""
    return f"GPU_MS:{pool}"


def voucher_asset(programme_id: str) -> str:
    """The asset in which a programme's subsidy is counted: micro-yuan of that funder's promise."""
    return f"VOUCHER:{programme_id}"


class TransferKind(StrEnum):
    POSTED = "posted"
    PENDING = "pending"  # with `pending_id`: adds to a hold that is open
    POST = "post"  # not final: takes a part and keeps the rest held
    VOID = "void"
    EXPIRE = "expire"


RESOLVING = frozenset({TransferKind.POST, TransferKind.VOID, TransferKind.EXPIRE})


@dataclass(frozen=True, slots=True)
class Account:
    id: int
    code: str
    asset: str
    bounded: bool = False
    floor: int = 0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Leg:
    """One transfer that is asked for. What resolves a pending transfer takes its accounts from it."""

    kind: TransferKind
    amount: int | None = None
    debit: int | None = None
    credit: int | None = None
    pending_id: int | None = None
    final: bool = True
    expires_at: datetime | None = None


def posted(debit: int, credit: int, amount: int) -> Leg:
    """Money that moves at once."""
    return Leg(TransferKind.POSTED, amount, debit, credit)


def pending(debit: int, credit: int, amount: int, expires_at: datetime) -> Leg:
    """Money that is put aside until it is posted, voided or expires."""
    return Leg(TransferKind.PENDING, amount, debit, credit, expires_at=expires_at)


def extend(pending_id: int, amount: int) -> Leg:
    """More money put aside under a hold that is open."""
    return Leg(TransferKind.PENDING, amount, pending_id=pending_id)


def post(pending_id: int, amount: int, *, final: bool = True) -> Leg:
    """Take `amount` of a hold; a final post releases what is left."""
    return Leg(TransferKind.POST, amount, pending_id=pending_id, final=final)


def void(pending_id: int) -> Leg:
    """Release a hold."""
    return Leg(TransferKind.VOID, pending_id=pending_id)


def expire(pending_id: int) -> Leg:
    """Release a hold whose time is over."""
    return Leg(TransferKind.EXPIRE, pending_id=pending_id)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One entry of the ledger, as it stands for ever."""

    id: int
    operation_id: int
    kind: TransferKind
    debit: int
    credit: int
    amount: int
    pending_id: int | None
    final: bool
    at: datetime


@dataclass(frozen=True, slots=True)
class OpenPending:
    debit: int
    credit: int
    left: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Balance:
    debits_posted: int = 0
    credits_posted: int = 0
    debits_pending: int = 0
    credits_pending: int = 0

    @property
    def posted(self) -> int:
        """What the account shows: credits less debits."""
        return self.credits_posted - self.debits_posted

    @property
    def available(self) -> int:
        """What may still be spent or held, before a credit line."""
        return self.posted - self.debits_pending

    def plus(self, dp: int = 0, cp: int = 0, dq: int = 0, cq: int = 0) -> "Balance":
        """This balance after debits/credits posted and pending moved by so much."""
        return Balance(
            self.debits_posted + dp, self.credits_posted + cp, self.debits_pending + dq, self.credits_pending + cq
        )


@dataclass(frozen=True, slots=True)
class Book:
    """A whole ledger as a value. `post_legs` returns the next one, or why not."""

    accounts: Mapping[int, Account] = field(default_factory=dict[int, Account])
    balances: Mapping[int, Balance] = field(default_factory=dict[int, Balance])
    open: Mapping[int, OpenPending] = field(default_factory=dict[int, OpenPending])
    transfers: tuple[Transfer, ...] = ()
    operations: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: RefusalReason
    leg: int | None = None
    account: int | None = None


def why_not(book: Book, leg: Leg, *, at: datetime) -> RefusalReason | None:
    """The first rung of the ladder that refuses `leg`, funds apart; None when all let it pass.

    The order is fixed and part of the interface: the amount, then the hold, then the accounts, then the funds.
    """
    needs_amount = leg.kind not in (TransferKind.VOID, TransferKind.EXPIRE)
    if needs_amount and (leg.amount is None or leg.amount < 1):
        return RefusalReason.AMOUNT_NOT_POSITIVE
    if needs_amount and leg.amount is not None and leg.amount > MAX_AMOUNT:
        return RefusalReason.AMOUNT_TOO_LARGE
    if (leg.pending_id is not None or leg.kind in RESOLVING) and (refusal := _why_not_hold(book, leg, at=at)):
        return refusal
    return _why_not_accounts(book, _with_accounts(book, leg), opens=leg.kind not in RESOLVING)


def _why_not_hold(book: Book, leg: Leg, *, at: datetime) -> RefusalReason | None:
    held = book.open.get(leg.pending_id or 0)
    if held is None:
        was = any(t.id == leg.pending_id and t.kind is TransferKind.PENDING for t in book.transfers)
        return RefusalReason.PENDING_RESOLVED if was else RefusalReason.PENDING_UNKNOWN
    over = held.expires_at <= at
    if over and leg.kind in (TransferKind.POST, TransferKind.PENDING):
        return RefusalReason.PENDING_EXPIRED
    if not over and leg.kind is TransferKind.EXPIRE:
        return RefusalReason.PENDING_NOT_EXPIRED
    if leg.kind is TransferKind.POST and (leg.amount or 0) > held.left:
        return RefusalReason.EXCEEDS_PENDING
    return None


def _why_not_accounts(book: Book, leg: Leg, *, opens: bool) -> RefusalReason | None:
    if leg.debit == leg.credit:
        return RefusalReason.SAME_ACCOUNT
    debit, credit = book.accounts.get(leg.debit or 0), book.accounts.get(leg.credit or 0)
    if debit is None or credit is None:
        return RefusalReason.ACCOUNT_UNKNOWN
    if debit.asset != credit.asset:
        return RefusalReason.ASSET_MISMATCH
    if opens and (debit.closed or credit.closed):
        return RefusalReason.ACCOUNT_CLOSED
    return None


def _with_accounts(book: Book, leg: Leg) -> Leg:
    held = book.open.get(leg.pending_id or 0)
    return leg if held is None else replace(leg, debit=held.debit, credit=held.credit)


def post_legs(book: Book, legs: Sequence[Leg], *, at: datetime) -> Book | Refusal:
    """The book after all of `legs`, or the first refusal and no change. A hold may appear once per operation."""
    named = [leg.pending_id for leg in legs if leg.pending_id is not None]
    assert len(named) == len(set(named)), "a hold may appear once per operation"
    for number, leg in enumerate(legs):
        if refusal := why_not(book, leg, at=at):
            return Refusal(refusal, leg=number)
    changes: dict[int, Balance] = {}
    for leg in legs:
        full = _with_accounts(book, leg)
        assert full.debit is not None and full.credit is not None, "the ladder saw both accounts"
        dp, dq = _movement(book, leg)
        changes[full.debit] = changes.get(full.debit, Balance()).plus(dp=dp, dq=dq)
        changes[full.credit] = changes.get(full.credit, Balance()).plus(cp=dp, cq=dq)
    balances = dict(book.balances)
    for account_id in sorted(changes):
        change, before = changes[account_id], balances.get(account_id, Balance())
        after = before.plus(change.debits_posted, change.credits_posted, change.debits_pending, change.credits_pending)
        account = book.accounts[account_id]
        if account.bounded and after.available < before.available and after.available < account.floor:
            return Refusal(RefusalReason.EXCEEDS_FUNDS, account=account_id)
        balances[account_id] = after
    return _written(book, legs, balances, at=at)


def _movement(book: Book, leg: Leg) -> tuple[int, int]:
    """How much a leg adds to what is posted and to what is pending."""
    amount = leg.amount or 0
    match leg.kind:
        case TransferKind.POSTED:
            return amount, 0
        case TransferKind.PENDING:
            return 0, amount
        case TransferKind.POST:
            return amount, -(book.open[leg.pending_id or 0].left if leg.final else amount)
        case TransferKind.VOID | TransferKind.EXPIRE:
            return 0, -book.open[leg.pending_id or 0].left


def _written(book: Book, legs: Sequence[Leg], balances: Mapping[int, Balance], *, at: datetime) -> Book:
    opened, transfers = dict(book.open), list(book.transfers)
    for leg in legs:
        number, full = len(transfers) + 1, _with_accounts(book, leg)
        held = book.open.get(leg.pending_id or 0)
        left = held.left if held else 0
        amount = left if leg.kind in (TransferKind.VOID, TransferKind.EXPIRE) else (leg.amount or 0)
        final = leg.kind in RESOLVING and (leg.final or amount == left)
        assert full.debit is not None and full.credit is not None, "the ladder saw both accounts"
        transfers.append(
            Transfer(number, book.operations + 1, leg.kind, full.debit, full.credit, amount, leg.pending_id, final, at)
        )
        if leg.kind is TransferKind.PENDING and held is None:
            assert leg.expires_at is not None, "a hold ends some time"
            opened[number] = OpenPending(full.debit, full.credit, amount, leg.expires_at)
        elif leg.pending_id is not None and held is not None:
            if final:
                del opened[leg.pending_id]
            else:
                more = amount if leg.kind is TransferKind.PENDING else -amount
                opened[leg.pending_id] = replace(held, left=left + more)
    return replace(book, balances=balances, open=opened, transfers=tuple(transfers), operations=book.operations + 1)
