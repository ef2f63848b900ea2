"""Durable events: written in the transaction that made them true, read in order, at least once.

A sequence number is taken before its transaction commits, so a reader going by it could step over an event that
commits late. Readers therefore go by (transaction, sequence) and see only transactions older than every running one.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NewType

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import notify
from kit.errors import InvalidInput

CHANNEL = "heliu_events"
_GATHERED = "kit.events.gathered"

Cursor = NewType("Cursor", str)
"""Where a reader stands; opaque, ordered by the log."""
START = Cursor("0-0")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `topic` is `noun.verb`; `subject` the id it happened to."""

    cursor: Cursor
    at: datetime
    topic: str
    subject: str
    firm_id: str | None
    body: Mapping[str, Any]


_WRITE = text("""
    WITH written AS (
        INSERT INTO kit.event (at, topic, subject, firm_id, body) SELECT at, topic, subject, firm_id, body
        FROM json_populate_recordset(CAST(NULL AS kit.event), CAST(:events AS json)) RETURNING topic)
    SELECT pg_notify(:channel, topic) FROM written GROUP BY topic ORDER BY topic""")


async def append(
    tx: AsyncSession, topic: str, subject: str, body: Mapping[str, Any], *, now: datetime, firm_id: str | None = None
) -> None:
    """Record an event; it exists if and only if the transaction commits. Followers are woken then."""
    gathered = tx.info.get(_GATHERED)
    if gathered is not None:
        gathered.append({"at": now, "topic": topic, "subject": subject, "firm_id": firm_id, "body": body})
        return
    await tx.execute(
        text("INSERT INTO kit.event (at, topic, subject, firm_id, body) VALUES (:at, :topic, :subject, :firm, :body)"),
        {"at": now, "topic": topic, "subject": subject, "firm": firm_id, "body": json.dumps(body, default=str)},
    )
    await notify(tx, CHANNEL, topic)


@asynccontextmanager
async def together(tx: AsyncSession) -> AsyncIterator[None]:
    """Events recorded inside are written at its end, in their order, by one statement."""
    assert _GATHERED not in tx.info, "one gathering at a time"
    gathered: list[dict[str, Any]] = []
    tx.info[_GATHERED] = gathered
    try:
        yield
    finally:
        del tx.info[_GATHERED]
    if gathered:
        await tx.execute(_WRITE, {"channel": CHANNEL, "events": json.dumps(gathered, default=str)})


async def read(
    tx: AsyncSession,
    *,
    after: Cursor = START,
    topics: Sequence[str] = (),
    subject: str | None = None,
    limit: int = 500,
) -> list[Event]:
    """Events after `after`, oldest first; all topics when `topics` is empty. Raises InvalidInput for a bad cursor."""
    xid, seq = _parse(after)
    rows = await tx.execute(
        text("""
            SELECT xid || '-' || seq, at, topic, subject, firm_id, body FROM kit.event
            WHERE (xid, seq) > (CAST(CAST(:xid AS text) AS xid8), :seq)
              AND xid < pg_snapshot_xmin(pg_current_snapshot())
              AND (cardinality(CAST(:topics AS text[])) = 0 OR topic = ANY(CAST(:topics AS text[])))
              AND (CAST(:subject AS text) IS NULL OR subject = :subject)
            ORDER BY xid, seq LIMIT :limit"""),
        {"xid": str(xid), "seq": seq, "topics": list(topics), "subject": subject, "limit": limit},
    )
    return [Event(*row) for row in rows]


async def position(tx: AsyncSession, reader: str) -> Cursor:
    """Up to where `reader` has handled everything; START for a new reader. Locks the reader's row."""
    await tx.execute(
        text("INSERT INTO kit.cursor (reader, position) VALUES (:reader, :start) ON CONFLICT DO NOTHING"),
        {"reader": reader, "start": START},
    )
    row = await tx.execute(
        text("SELECT position FROM kit.cursor WHERE reader = :reader FOR UPDATE"), {"reader": reader}
    )
    return Cursor(row.scalar_one())


async def advance(tx: AsyncSession, reader: str, cursor: Cursor) -> None:
    """Record that `reader` has handled everything up to `cursor`, in the transaction of its effects."""
    await tx.execute(
        text("UPDATE kit.cursor SET position = :cursor WHERE reader = :reader"), {"reader": reader, "cursor": cursor}
    )


def _parse(cursor: Cursor) -> tuple[int, int]:
    xid, dash, seq = cursor.partition("-")
    if not (dash and xid.isdecimal() and seq.isdecimal()):
        raise InvalidInput(f"{cursor!r} is not a cursor; pass one that an earlier answer gave, or none")
    return int(xid), int(seq)
