"""The audit log's proof: entries are sealed after commit, the chain is verified, and what is exported can be checked.

An export's JSON lines are the very text that is hashed: a block's hash is SHA-256 over the hash before it and its
lines joined by newlines.
"""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import Database
from quotas.adapters import audit_store
from quotas.adapters.audit_store import AuditBlock
from quotas.chain_heads import append_heads, check_chain, last_head
from quotas.vocabulary import ExportFormat, Finding, FirmId

COLUMNS = (
    "seq", "at", "actor_kind", "actor_id", "actor_firm_id", "origin", "action", "subject", "firm_id", "before",
    "after", "reason",
)  # fmt: skip
LINES_PER_CHUNK = 500


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The log's self-examination: no findings means that nothing sealed was changed, as far as its heads tell."""

    findings: tuple[Finding, ...]
    entries: int
    unsealed: int
    blocks: int
    heads: int


async def seal_audit(db: Database, now: datetime, heads: Path | None = None) -> int:
    """Seal what was committed and write the new heads to `heads`. Returns the number of blocks made."""
    made = 0
    while await db.retrying(lambda tx: audit_store.seal(tx, now=now)):
        made += 1
    if heads is not None:
        written = await asyncio.to_thread(last_head, heads)
        async with db.transaction() as tx:
            new = await audit_store.blocks(tx, after=written)
        if new:
            await asyncio.to_thread(append_heads, heads, [(one.number, one.hash, one.sealed_at) for one in new])
    return made


async def audit_blocks(tx: AsyncSession) -> list[AuditBlock]:
    """Every sealed block, in order."""
    return await audit_store.blocks(tx)


async def verify_audit(tx: AsyncSession, heads: Path | None = None) -> AuditReport:
    """Whether every block follows its predecessor, hashes to what it says and is the one whose head was kept."""
    report = await check_chain(
        await audit_store.blocks(tx),
        lambda block: audit_store.block_lines(tx, block),
        heads,
        what="audit block",
        of="the log",
    )
    entries, unsealed = await audit_store.counts(tx)
    return AuditReport(report.findings, entries, unsealed, report.blocks, report.heads)


async def export_audit(db: Database, firm_id: FirmId | None, format: ExportFormat) -> AsyncIterator[str]:
    """The log of one firm or of all, in the order of the chain, as chunks of text.

    In CSV a cell that a spreadsheet would take for a formula starts with an apostrophe; JSON lines are exact.
    """
    write = _as_csv if format is ExportFormat.CSV else _as_lines
    if format is ExportFormat.CSV:
        yield ",".join(COLUMNS) + "\r\n"
    batch: list[str] = []
    async with db.transaction() as tx:
        async for line in audit_store.lines(tx, firm_id=firm_id):
            batch.append(line)
            if len(batch) == LINES_PER_CHUNK:
                yield write(batch)
                batch = []
    if batch:
        yield write(batch)


def _as_lines(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _as_csv(lines: list[str]) -> str:
    page = io.StringIO()
    rows = csv.writer(page)
    for line in lines:
        entry = json.loads(line)
        rows.writerow([_cell(entry[column]) for column in COLUMNS])
    return page.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    written = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return f"'{written}" if written.startswith(("=", "+", "-", "@", "\t", "\r")) else written
