"""The ledger as a whole: sweep what is due, seal what was posted, examine everything."""

import asyncio
import json
import os
from datetime import datetime
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import Database
from kit.units import MicroYuan
from quotas.adapters import ledger_audit, ledger_store
from quotas.adapters.ledger_store import Block
from quotas.allowances import expire_leases
from quotas.holds import expire_holds
from quotas.programmes import expire_vouchers
from quotas.rate_windows import expire_windows
from quotas.statement_service import check_statements, close_statement, due_statements
from quotas.vocabulary import CheckReport, Finding, FirmId, OpenHold


async def sweep(db: Database, now: datetime, heads: Path | None = None, *, months: bool = True) -> int:
    """Expire holds, leases and vouchers, seal blocks, close months. Safe to run twice and to kill at any line.

    Each step is a transaction of its own; looking for `months` to close reads every charge. Returns how many things
    it did.
    """
    done = 0
    for step in (expire_holds, expire_leases, expire_vouchers, expire_windows):
        done += await db.retrying(lambda tx, step=step: step(tx, now=now))
    for firm_id, period in await db.retrying(lambda tx: due_statements(tx, now=now)) if months else []:
        await db.retrying(lambda tx, firm=firm_id, month=period: close_statement(tx, firm, month, now=now))
        done += 1
    while await db.retrying(lambda tx: ledger_store.seal(tx, now=now)):
        done += 1
    if heads is not None:
        done += await write_heads(db, heads)
    return done


async def write_heads(db: Database, path: Path) -> int:
    """Append the heads of blocks that are not in the file yet; who changes the database would have to change both."""
    written = await asyncio.to_thread(_last_head, path)
    async with db.transaction() as tx:
        blocks = await ledger_store.blocks(tx, after=written)
    if blocks:
        await asyncio.to_thread(_append, path, "".join(_head(block) for block in blocks))
    return len(blocks)


def _last_head(path: Path) -> int:
    """Number of the last head that was written whole; a torn last line is written over."""
    if not path.exists():
        return 0
    text_so_far = path.read_text()
    whole = text_so_far[: text_so_far.rfind("\n") + 1]
    if whole != text_so_far:
        path.write_text(whole)
    lines = whole.splitlines()
    return int(json.loads(lines[-1])["number"]) if lines else 0


def _append(path: Path, lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _head(block: Block) -> str:
    head = {
        "number": block.number,
        "hash": block.hash.hex(),
        "transfers": block.transfers,
        "sealed_at": block.sealed_at.isoformat(),
    }
    return json.dumps(head) + "\n"


async def check_ledger(tx: AsyncSession, heads: Path | None = None) -> list[Finding]:
    """Everything that must hold and does not: L1, L2, L3 and the chain. Empty means all is well."""
    return [
        *await ledger_audit.check_ledger_tables(tx),
        *await ledger_audit.check_chain(tx, heads),
        *await ledger_audit.check_nouns(tx),
        *await check_statements(tx),
    ]


async def check_report(tx: AsyncSession, heads: Path | None = None) -> CheckReport:
    """The findings, how much was examined, and the open holds by name."""
    findings = await check_ledger(tx, heads)
    counts = (
        await tx.execute(
            text("""SELECT (SELECT count(*) FROM quotas.account) AS accounts,
                (SELECT count(*) FROM quotas.transfer) AS transfers, (SELECT count(*) FROM quotas.block) AS blocks""")
        )
    ).one()
    return CheckReport(
        tuple(findings),
        counts.accounts,
        counts.transfers,
        counts.blocks,
        tuple(await open_holds(tx)),
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
