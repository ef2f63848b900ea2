"""The ledger in PostgreSQL: open accounts, post operations, read balances, seal blocks. No rule lives here."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import sql
from kit.errors import Conflict
from quotas.chart import AccountSpec
from quotas.ledger import RESOLVING, Leg, Refusal
from quotas.vocabulary import RefusalReason

RACES = 5
"""How often money is shared out anew, with the balances locked, when somebody spent of it between look and posting."""


@dataclass(frozen=True, slots=True)
class Posting:
    """An operation that stands. `replayed`: it stood already, and `reply` is what was answered then."""

    operation_id: int
    transfer_ids: tuple[int, ...]
    replayed: bool
    reply: Any


@dataclass(frozen=True, slots=True)
class Block:
    number: int
    from_xid: str
    until_xid: str
    transfers: int
    previous: bytes
    hash: bytes
    sealed_at: datetime


def request_hash(content: object) -> bytes:
    """SHA-256 of a request's content, the same for the same content in any order of keys."""
    written = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(written.encode()).digest()


_POST = text("""
    SELECT refusal, refused_leg, short_account, operation_id, transfer_ids, replayed, stored_reply FROM quotas.post(
        :scope, :key, :hash, :at, CAST(:reply AS jsonb), CAST(:kinds AS quotas.transfer_kind[]),
        CAST(:debits AS bigint[]), CAST(:credits AS bigint[]), CAST(:amounts AS bigint[]), CAST(:pendings AS bigint[]),
        CAST(:finals AS boolean[]), CAST(:expiries AS timestamptz[]))""")


async def post(
    tx: AsyncSession,
    *,
    scope: str,
    key: str,
    request: object,
    legs: Sequence[Leg],
    at: datetime,
    reply: object = None,
) -> Posting | Refusal:
    """Post all legs as one operation, or nothing and say why. One round trip.

    The same (scope, key) with the same request returns the first posting; with another request raises Conflict.
    """
    assert legs, "an operation moves something"
    if len(legs) == 1 and legs[0].final:
        done = await _post_one(tx, scope, key, request, legs[0], at, reply)
        if done is not None:
            return done
    row = (
        await tx.execute(
            _POST,
            {
                "scope": scope,
                "key": key,
                "hash": request_hash(request),
                "at": at,
                "reply": None if reply is None else json.dumps(reply, default=str),
                "kinds": [leg.kind.value for leg in legs],
                "debits": [leg.debit for leg in legs],
                "credits": [leg.credit for leg in legs],
                "amounts": [leg.amount for leg in legs],
                "pendings": [leg.pending_id for leg in legs],
                "finals": [leg.final for leg in legs],
                "expiries": [leg.expires_at for leg in legs],
            },
        )
    ).one()
    if row.refusal == "key_reused":
        raise key_reused(scope, key)
    if row.refusal is not None:
        return Refusal(RefusalReason(row.refusal), leg=row.refused_leg, account=row.short_account)
    return Posting(row.operation_id, tuple(row.transfer_ids), row.replayed, row.stored_reply)


_TAKE_ONE = text("""
    SELECT quotas.take_one(:scope, :key, :hash, :at, CAST(:reply AS jsonb), CAST(:kind AS quotas.transfer_kind),
        :debit, :credit, :amount, :expiry)""")
_RESOLVE_ONE = text("""
    SELECT quotas.resolve_one(:scope, :key, :hash, :at, CAST(:reply AS jsonb), CAST(:kind AS quotas.transfer_kind),
        :pending, :amount)""")


async def _post_one(
    tx: AsyncSession, scope: str, key: str, request: object, leg: Leg, at: datetime, reply: object
) -> Posting | None:
    """The short way for one leg; None when anything but plain success was met, and nothing has changed."""
    operation: dict[str, Any] = {
        "scope": scope,
        "key": key,
        "hash": request_hash(request),
        "at": at,
        "reply": None if reply is None else json.dumps(reply, default=str),
        "kind": leg.kind.value,
        "amount": leg.amount,
    }
    if leg.kind in RESOLVING:
        done = await tx.execute(_RESOLVE_ONE, {**operation, "pending": leg.pending_id})
    elif leg.pending_id is None:
        accounts = {"debit": leg.debit, "credit": leg.credit, "expiry": leg.expires_at}
        done = await tx.execute(_TAKE_ONE, {**operation, **accounts})
    else:
        return None
    number = done.scalar_one()
    return None if number is None else Posting(number, (number,), False, reply)


def key_reused(scope: str, key: str) -> Conflict:
    """The same idempotency key came with other content."""
    return Conflict(
        f"The key {key!r} of {scope!r} was used for another request.",
        code="key_reused",
        hint="use a new key for a new request",
    )


_FIND_ACCOUNTS = text("SELECT code, id FROM quotas.account WHERE code = ANY(CAST(:codes AS text[]))")
_OPEN_ACCOUNTS = text("""
    WITH made AS (
        INSERT INTO quotas.account (code, asset, owner, bounded, opened_at)
        SELECT u.code, u.asset, u.owner, u.bounded, :at
        FROM unnest(CAST(:codes AS text[]), CAST(:assets AS text[]), CAST(:owners AS text[]),
            CAST(:bounded AS boolean[])) AS u (code, asset, owner, bounded)
        ORDER BY u.code ON CONFLICT (code) DO NOTHING RETURNING id, bounded
    )
    INSERT INTO quotas.balance (account_id, floor) SELECT id, CASE WHEN bounded THEN 0 END FROM made""")


async def accounts(tx: AsyncSession, specs: Sequence[AccountSpec], *, at: datetime) -> dict[AccountSpec, int]:
    """Ids of accounts; those that do not exist are opened."""
    wanted = sorted(set(specs))
    found = await _ids(tx, wanted)
    missing = [spec for spec in wanted if spec.code not in found]
    if missing:
        await tx.execute(
            _OPEN_ACCOUNTS,
            {
                "codes": [spec.code for spec in missing],
                "assets": [spec.asset for spec in missing],
                "owners": [spec.owner for spec in missing],
                "bounded": [spec.bounded for spec in missing],
                "at": at,
            },
        )
        found |= await _ids(tx, missing)
    return {spec: found[spec.code] for spec in wanted}


async def _ids(tx: AsyncSession, specs: Sequence[AccountSpec]) -> dict[str, int]:
    rows = await tx.execute(_FIND_ACCOUNTS, {"codes": [spec.code for spec in specs]})
    return {row.code: row.id for row in rows}


@dataclass(frozen=True, slots=True)
class AccountState:
    """An account as it stands now. `posted` is credits less debits; `held` is pending debits."""

    posted: int
    held: int
    floor: int

    @property
    def available(self) -> int:
        """What may still be spent or held, the credit line included."""
        return self.posted - self.held - self.floor


_BOUNDED = text("""
    SELECT a.code, b.credits_posted - b.debits_posted AS posted, b.debits_pending AS held, b.floor
    FROM quotas.account a JOIN quotas.balance b ON b.account_id = a.id
    WHERE a.bounded AND a.code = ANY(CAST(:codes AS text[]))""")


async def bounded_states(tx: AsyncSession, specs: Sequence[AccountSpec]) -> Mapping[str, AccountState]:
    """Code → state of bounded accounts; one that was never opened is missing, that is, zero."""
    rows = await tx.execute(_BOUNDED, {"codes": [spec.code for spec in specs]})
    return {row.code: AccountState(row.posted, row.held, row.floor) for row in rows}


async def lock_states(tx: AsyncSession, ids: Sequence[int]) -> Mapping[str, AccountState]:
    """Keep what these bounded accounts have until the transaction ends; code → state, as in `bounded_states`."""
    rows = await tx.execute(
        sql("""
            SELECT a.code, b.credits_posted - b.debits_posted AS posted, b.debits_pending AS held, b.floor
            FROM quotas.balance b JOIN quotas.account a ON a.id = b.account_id
            WHERE b.account_id = ANY(CAST(:ids AS bigint[])) ORDER BY b.account_id FOR UPDATE OF b"""),
        {"ids": list(ids)},
    )
    return {row.code: AccountState(row.posted, row.held, row.floor) for row in rows}


async def lock_balances(tx: AsyncSession, ids: Sequence[int]) -> None:
    """Keep what these accounts have until the transaction ends, so that what is read next can be posted."""
    await tx.execute(
        sql("""SELECT FROM quotas.balance WHERE account_id = ANY(CAST(:ids AS bigint[]))
            ORDER BY account_id FOR UPDATE"""),
        {"ids": list(ids)},
    )


_POSTED = text("""
    WITH tail AS (
        SELECT t.debit_id, t.credit_id, t.amount FROM quotas.transfer t
        WHERE t.xid >= coalesce((SELECT max(until_xid) FROM quotas.block), '0') AND t.kind IN ('posted', 'post')
    ), moved AS (
        SELECT s.account_id, sum(s.amount) AS amount
        FROM (SELECT credit_id AS account_id, amount FROM tail UNION ALL SELECT debit_id, -amount FROM tail) s
        GROUP BY s.account_id
    )
    SELECT a.code, b.credits_posted - b.debits_posted
        + CASE WHEN a.bounded THEN 0 ELSE coalesce(moved.amount, 0) END AS posted
    FROM quotas.account a JOIN quotas.balance b ON b.account_id = a.id LEFT JOIN moved ON moved.account_id = a.id
    WHERE a.code LIKE :pattern ORDER BY a.code""")


async def posted_balances(tx: AsyncSession, pattern: str = "%") -> dict[str, int]:
    """Code → credits less debits of every account whose code is LIKE `pattern`, unsealed transfers included."""
    rows = await tx.execute(_POSTED, {"pattern": pattern})
    return {row.code: int(row.posted) for row in rows}


async def set_floor(tx: AsyncSession, account_id: int, floor: int) -> bool:
    """Let an account go down to `floor`; False when it is below that already."""
    done = await tx.execute(
        sql("""UPDATE quotas.balance SET floor = :floor
            WHERE account_id = :id AND credits_posted - debits_posted - debits_pending >= :floor RETURNING 1"""),
        {"id": account_id, "floor": floor},
    )
    return done.first() is not None


async def seal(tx: AsyncSession, *, now: datetime, at_most: int = 50_000) -> Block | None:
    """Seal what is committed and not sealed yet into one block; None when there is nothing."""
    row = (
        await tx.execute(
            sql("SELECT * FROM quotas.seal(:now, :at_most)"),
            {"now": now, "at_most": at_most},
        )
    ).first()
    return None if row is None else Block(**row._mapping)


async def blocks(tx: AsyncSession, *, after: int = 0) -> list[Block]:
    """Every sealed block above a number, in order."""
    rows = await tx.execute(sql("SELECT * FROM quotas.block WHERE number > :after ORDER BY number"), {"after": after})
    return [Block(**row._mapping) for row in rows]


async def block_lines(tx: AsyncSession, block: Block) -> str:
    """The text a block's hash covers, computed anew from its transfers."""
    row = await tx.execute(
        sql("SELECT quotas.chain_lines(CAST(:start AS xid8), CAST(:stop AS xid8))"),
        {"start": block.from_xid, "stop": block.until_xid},
    )
    return str(row.scalar_one() or "")


async def pending_left(tx: AsyncSession, pending_ids: Sequence[int]) -> dict[int, int]:
    """What open holds still hold, by pending transfer; they are locked, in order. A resolved one is missing."""
    rows = await tx.execute(
        sql("""SELECT id, amount_left FROM quotas.pending WHERE id = ANY(CAST(:ids AS bigint[]))
            ORDER BY id FOR UPDATE"""),
        {"ids": list(pending_ids)},
    )
    return {row.id: row.amount_left for row in rows}


async def hold_until(tx: AsyncSession, pending_ids: Sequence[int], expires_at: datetime) -> None:
    """Move the end of open holds, which the caller has locked."""
    await tx.execute(
        sql("UPDATE quotas.pending SET expires_at = :at WHERE id = ANY(CAST(:ids AS bigint[]))"),
        {"ids": list(pending_ids), "at": expires_at},
    )
