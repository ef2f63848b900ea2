"""Why work waits, as rows: read and written for everything that waits at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import sql


@dataclass(frozen=True, slots=True)
class WaitRow:
    """What was last written of why a workload waits."""

    id: str
    fence: int
    wait_reason: str
    wait_detail: str | None
    eta: datetime | None
    eta_estimated: bool


async def write_waits(tx: AsyncSession, waits: Sequence[WaitRow]) -> Sequence[Any]:
    """Write why these wait, unless they started meanwhile.

    A row (id, kind, firm_id, is_new, version) for each that is written: whether its reason is a new one, and the
    version (see `versions`) that its row has when the transaction has committed.
    """
    rows = await tx.execute(
        sql("""
            WITH told AS (
                SELECT w.id, w.kind, w.firm_id, w.wait_reason AS before, u.* FROM scheduler.workload AS w
                JOIN unnest(CAST(:ids AS text[]), CAST(:fences AS integer[]), CAST(:reasons AS text[]),
                    CAST(:details AS text[]), CAST(:etas AS timestamptz[]), CAST(:estimated AS boolean[]))
                    AS u (of, fence, reason, detail, eta, is_estimate) ON u.of = w.id AND u.fence = w.fence
                WHERE w.state = 'queued' ORDER BY w.id FOR UPDATE OF w)
            UPDATE scheduler.workload AS w SET wait_reason = told.reason, wait_detail = told.detail, eta = told.eta,
                eta_estimated = told.is_estimate
            FROM told WHERE w.id = told.id RETURNING w.id, w.kind, w.firm_id, told.before <> told.reason AS is_new,
                w.xmin::text::bigint AS version"""),
        {
            "ids": [wait.id for wait in waits],
            "fences": [wait.fence for wait in waits],
            "reasons": [wait.wait_reason for wait in waits],
            "details": [wait.wait_detail for wait in waits],
            "etas": [wait.eta for wait in waits],
            "estimated": [wait.eta_estimated for wait in waits],
        },
    )
    return rows.all()
