"""The ledger as a whole: sweep what is due, seal what was posted, examine everything."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import Database
from kit.errors import Unavailable
from kit.units import MicroYuan
from quotas.adapters import ledger_audit, ledger_store
from quotas.allowances import expire_leases
from quotas.chain_heads import ChainReport, append_heads, check_chain, last_head
from quotas.holds import expire_holds
from quotas.places import expire_places
from quotas.price_checks import check_prices
from quotas.programmes import expire_vouchers
from quotas.rate_windows import expire_windows
from quotas.statement_service import check_statements, close_statement, due_statements
from quotas.vocabulary import CheckReport, Finding, FirmId, OpenHold

log = logging.getLogger(__name__)
MONTHS_AT_ONCE = 50
"""How many months are closed before holds and leases are looked at again."""


async def sweep(db: Database, now: datetime, heads: Path | None = None, *, months: bool = True) -> int:
    """Expire holds, leases and vouchers, seal blocks, close `months`. Safe to run twice and to kill at any line.

    Each step is a transaction of its own. Returns how many things it did.
    """
    done = 0
    for step in (expire_holds, expire_leases, expire_vouchers, expire_windows, expire_places):
        done += await db.retrying(lambda tx, step=step: step(tx, now=now))
    if months:
        done += (await close_months(db, now, at_most=None)).closed
    while await db.retrying(lambda tx: ledger_store.seal(tx, now=now)):
        done += 1
    if heads is not None:
        done += await write_heads(db, heads)
    return done


@dataclass(frozen=True, slots=True)
class Closing:
    """What came of a look at the months that are due: how many were closed, and whether more are waiting."""

    closed: int
    more: bool


async def close_months(db: Database, now: datetime, *, at_most: int | None = MONTHS_AT_ONCE) -> Closing:
    """Close months whose grace is over, oldest first; looking for them reads every charge.

    A month that does not add up is named in the log and stays open, and so do the later months of its firm; those of
    other firms are closed.
    """
    closed, stuck = 0, set[FirmId]()
    for firm_id, period in await db.retrying(lambda tx: due_statements(tx, now=now)):
        if firm_id in stuck:
            continue
        if closed == at_most:
            return Closing(closed, more=True)
        try:
            await db.retrying(lambda tx, firm=firm_id, month=period: close_statement(tx, firm, month, now=now))
            closed += 1
        except Unavailable:
            raise
        except Exception:
            log.exception("a month could not be closed", extra={"firm": firm_id, "period": period})
            stuck.add(firm_id)
    return Closing(closed, more=False)


async def write_heads(db: Database, path: Path) -> int:
    """Append the heads of blocks that are not in the file yet; who changes the database would have to change both."""
    written = await asyncio.to_thread(last_head, path)
    async with db.transaction() as tx:
        new = await ledger_store.blocks(tx, after=written)
    if new:
        await asyncio.to_thread(append_heads, path, [(one.number, one.hash, one.sealed_at) for one in new])
    return len(new)


async def _chain(tx: AsyncSession, heads: Path | None) -> ChainReport:
    return await check_chain(
        await ledger_store.blocks(tx),
        lambda block: ledger_store.block_lines(tx, block),
        heads,
        what="block",
        of="the ledger",
    )


async def _books(tx: AsyncSession) -> list[Finding]:
    return [
        *await ledger_audit.check_ledger_tables(tx),
        *await ledger_audit.check_nouns(tx),
        *await check_prices(tx),
        *await check_statements(tx),
    ]


async def check_ledger(tx: AsyncSession, heads: Path | None = None) -> list[Finding]:
    """Everything that must hold and does not: L1, L2, L3 and the chain. Empty means all is well."""
    return [*await _books(tx), *(await _chain(tx, heads)).findings]


async def check_report(tx: AsyncSession, heads: Path | None = None) -> CheckReport:
    """The findings, how much was examined, and the open holds by name."""
    books, chain = await _books(tx), await _chain(tx, heads)
    counts = (
        await tx.execute(
            text("""SELECT (SELECT count(*) FROM quotas.account) AS accounts, count(*) AS transfers,
                    count(*) FILTER (WHERE xid >= coalesce((SELECT max(until_xid) FROM quotas.block), '0')) AS unsealed
                FROM quotas.transfer""")
        )
    ).one()
    return CheckReport(
        (*books, *chain.findings),
        counts.accounts,
        counts.transfers,
        chain.blocks,
        tuple(await open_holds(tx)),
        heads=chain.heads,
        unsealed=counts.unsealed,
    )


async def open_holds(tx: AsyncSession) -> list[OpenHold]:
    """What is on hold now, by whom and for what: compute holds and gateways' leases."""
    rows = await tx.execute(
        text("""
            SELECT h.id, 'compute' AS kind, h.subject, h.firm_id, h.amount, h.expires_at
            FROM quotas.compute_hold h WHERE h.state = 'open'
            UNION ALL
            SELECT l.id, 'allowance', l.holder, l.firm_id, coalesce(sum(p.amount_left), 0)::bigint, l.expires_at
            FROM quotas.allowance_part l LEFT JOIN quotas.pending p ON p.id = l.pending_id WHERE l.state = 'open'
            GROUP BY l.id, l.holder, l.firm_id, l.expires_at
            ORDER BY 2, 1""")
    )
    return [
        OpenHold(
            row.id,
            row.kind,
            row.subject,
            FirmId(row.firm_id),
            MicroYuan(row.amount),
            row.expires_at,
        )
        for row in rows
    ]
