"""What must always hold of a ledger (invariants L1 and L2), and the chain that shows it was not rewritten.

They judge the model and the books that tests read whole. A live database is examined where it is, by the queries of
`quotas/adapters/ledger_audit.py`; both take the blocks of the chain from here.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from quotas.ledger import Account, Balance, Transfer, TransferKind
from quotas.vocabulary import Finding


def replay(transfers: Iterable[Transfer]) -> tuple[dict[int, Balance], dict[int, int]]:
    """Balances and what is left of every open hold, computed from the transfers alone."""
    balances: dict[int, Balance] = {}
    left: dict[int, int] = {}
    for t in transfers:
        dp, dq = 0, 0
        match t.kind:
            case TransferKind.POSTED:
                dp = t.amount
            case TransferKind.PENDING:
                dq = t.amount
                root = t.pending_id or t.id
                left[root] = left.get(root, 0) + t.amount
            case TransferKind.POST | TransferKind.VOID | TransferKind.EXPIRE:
                assert t.pending_id is not None, "what resolves names what it resolves"
                dp = t.amount if t.kind is TransferKind.POST else 0
                dq = -(left[t.pending_id] if t.final else t.amount)
                left[t.pending_id] += dq
                if t.final:
                    del left[t.pending_id]
        balances[t.debit] = balances.get(t.debit, Balance()).plus(dp=dp, dq=dq)
        balances[t.credit] = balances.get(t.credit, Balance()).plus(cp=dp, cq=dq)
    return balances, left


def check_conservation(accounts: Mapping[int, Account], balances: Mapping[int, Balance]) -> list[Finding]:
    """L1: per asset, debits equal credits, posted and pending."""
    totals: dict[str, Balance] = {}
    for account_id, one in balances.items():
        asset = accounts[account_id].asset
        totals[asset] = totals.get(asset, Balance()).plus(
            one.debits_posted, one.credits_posted, one.debits_pending, one.credits_pending
        )
    return [
        Finding("L1", asset, f"debits and credits differ: {t}")
        for asset, t in sorted(totals.items())
        if (t.debits_posted, t.debits_pending) != (t.credits_posted, t.credits_pending)
    ]  # fmt: skip


def check_replay(cached: Mapping[int, Balance], replayed: Mapping[int, Balance]) -> list[Finding]:
    """L1: every cached balance equals the replay of its transfers."""
    return [
        Finding("L1", f"account {account_id}", f"cached {cached.get(account_id)}, replayed {replayed.get(account_id)}")
        for account_id in sorted(cached.keys() | replayed.keys())
        if cached.get(account_id, Balance()) != replayed.get(account_id, Balance())
    ]  # fmt: skip


def check_floors(accounts: Mapping[int, Account], balances: Mapping[int, Balance]) -> list[Finding]:
    """L1: no bounded account is below its floor."""
    return [
        Finding("L1", accounts[account_id].code, f"{one.available} is below its floor {accounts[account_id].floor}")
        for account_id, one in sorted(balances.items())
        if accounts[account_id].bounded and one.available < accounts[account_id].floor
    ]  # fmt: skip


def check_resolutions(transfers: Iterable[Transfer]) -> list[Finding]:
    """L2: a hold is resolved at most once, after it was made, and what was posted is at most what was held."""
    held: dict[int, int] = {}
    taken: dict[int, int] = {}
    resolved: dict[int, int] = {}
    findings: list[Finding] = []
    for t in transfers:
        if t.kind is TransferKind.PENDING:
            root = t.pending_id or t.id
            held[root] = held.get(root, 0) + t.amount
        elif t.pending_id is not None:
            if t.pending_id not in held:
                findings.append(Finding("L2", f"transfer {t.id}", f"it resolves {t.pending_id}, which was never held"))
            if t.pending_id in resolved:
                findings.append(
                    Finding("L2", f"hold {t.pending_id}", f"resolved by {resolved[t.pending_id]}, then {t.id}")
                )
            if t.kind is TransferKind.POST:
                taken[t.pending_id] = taken.get(t.pending_id, 0) + t.amount
            if t.final:
                resolved[t.pending_id] = t.id
    findings += [
        Finding("L2", f"hold {root}", f"{amount} was taken of {held.get(root, 0)} held")
        for root, amount in sorted(taken.items())
        if amount > held.get(root, 0)
    ]
    return findings


GENESIS = bytes(32)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def chain_line(transfer: Transfer, scope: str, key: str) -> str:
    """A transfer as the text that is hashed; `quotas.chain_line` in the database writes the same."""
    at_us = (transfer.at - _EPOCH) // timedelta(microseconds=1)
    return "|".join(
        (
            str(transfer.id), str(transfer.operation_id), transfer.kind, str(transfer.debit), str(transfer.credit),
            str(transfer.amount), str(transfer.pending_id or ""), "t" if transfer.final else "f", str(at_us), scope,
            key,
        )
    )  # fmt: skip


def block_hash(previous: bytes, lines: Sequence[str]) -> bytes:
    """SHA-256 of the previous head and this block's lines in order."""
    return hashlib.sha256(previous + "\n".join(lines).encode()).digest()
