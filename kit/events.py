"""Durable events: written in the transaction that made them true, read in order, at least once.

A sequence number is taken before its transaction commits, so a reader could step over an event that
commits late. Readers therefore see only events of transactions older than every one still running.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import notify

CHANNEL = "heliu_events"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `topic` is `noun.verb`; `subject` the id it happened to."""

    seq: int
    at: datetime
    topic: str
    subject: str
    firm_id: str | None
    body: Mapping[str, Any]


async def append(
    tx: AsyncSession, topic: str, subject: str, body: Mapping[str, Any], *, now: datetime, firm_id: str | None = None
) -> None:
    """Record an event; it exists if and only if the transaction commits. Followers are woken then."""
    await tx.execute(
        text("INSERT INTO kit.event (at, topic, subject, firm_id, body) VALUES (:at, :topic, :subject, :firm, :body)"),
        {"at": now, "topic": topic, "subject": subject, "firm": firm_id, "body": json.dumps(body, default=str)},
    )
    await notify(tx, CHANNEL, topic)


async def read(
    tx: AsyncSession,
    *,
    after: int = 0,
    topics: Sequence[str] = (),
    subject: str | None = None,
    limit: int = 500,
) -> list[Event]:
    """Events with a sequence number above `after`, oldest first; all topics when `topics` is empty."""
    rows = await tx.execute(
        text("""
            SELECT seq, at, topic, subject, firm_id, body FROM kit.event
            WHERE seq > :after AND xid < pg_snapshot_xmin(pg_current_snapshot())
              AND (cardinality(CAST(:topics AS text[])) = 0 OR topic = ANY(CAST(:topics AS text[])))
              AND (CAST(:subject AS text) IS NULL OR subject = :subject)
            ORDER BY seq LIMIT :limit"""),
        {"after": after, "topics": list(topics), "subject": subject, "limit": limit},
    )
    return [Event(*row) for row in rows]


async def position(tx: AsyncSession, reader: str) -> int:
    """Sequence number up to which `reader` has seen everything; 0 for a new reader. Locks the reader's row."""
    await tx.execute(
        text("INSERT INTO kit.cursor (reader, seq) VALUES (:reader, 0) ON CONFLICT DO NOTHING"), {"reader": reader}
    )
    row = await tx.execute(text("SELECT seq FROM kit.cursor WHERE reader = :reader FOR UPDATE"), {"reader": reader})
    return int(row.scalar_one())


async def advance(tx: AsyncSession, reader: str, seq: int) -> None:
    """Record that `reader` has handled everything up to `seq`, in the transaction of its effects."""
    await tx.execute(
        text("UPDATE kit.cursor SET seq = greatest(seq, :seq) WHERE reader = :reader"), {"reader": reader, "seq": seq}
    )
