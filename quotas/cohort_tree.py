"""The tree of cohorts as administrators change it; the scheduler reads it at the instant it decides for."""

from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.db import notify
from kit.errors import InvalidInput
from quotas import audit
from quotas.adapters import quota_store as store
from quotas.adapters.tables import CohortPlacementRow
from quotas.applications import require_active
from quotas.cohorts import Placement, Tree, check_placement, is_firm, tree_at
from quotas.quota_versions import JOBS_CHANNEL
from quotas.vocabulary import CohortName, FirmId


async def place(
    tx: AsyncSession,
    node: FirmId | CohortName,
    *,
    parent: CohortName | None,
    by: Principal,
    now: datetime,
    weight_milli: int = 1000,
    effective_from: datetime | None = None,
    reason: str | None = None,
    origin: str | None = None,
) -> CohortPlacementRow:
    """Hang a firm or a cohort below `parent` (None: at the top), now or from a day to come; makes a new cohort.

    Raises NotFound or Forbidden for the firm, InvalidInput, Conflict for a loop or a parent that is not there.
    """
    start = effective_from or now
    if start < now:
        raise InvalidInput("The tree cannot change the past.", code="cohort_backdated", hint="Leave the start out.")
    if is_firm(node):
        await require_active(tx, FirmId(node))
    await store.lock_cohorts(tx)
    known = [_placement(row) for row in await store.placements(tx)]
    check_placement(known, Placement(len(known) + 1, node, parent, weight_milli, start))
    before = tree_at(known, at=start).get(node)
    row = CohortPlacementRow(
        version=len(known) + 1,
        node=node,
        parent=parent,
        weight_milli=weight_milli,
        effective_from=start,
        set_at=now,
        set_by=by.id,
        reason=reason,
    )
    await store.add(tx, row)
    body = {"parent": parent, "weight_milli": weight_milli, "effective_from": start}
    was = {"parent": before.parent, "weight_milli": before.weight_milli} if before else None
    firm_id = node if is_firm(node) else None
    await audit.record(
        tx, "cohort.place", node, by=by, now=now, firm_id=firm_id, origin=origin, reason=reason, before=was, after=body
    )
    await events.append(tx, "cohort.placed", node, body, now=now, firm_id=firm_id)
    await notify(tx, JOBS_CHANNEL, "*")
    return row


async def cohort_tree(tx: AsyncSession, *, at: datetime) -> Tree:
    """The tree in force at `at`; a firm that is not in it shares with nobody."""
    return tree_at([_placement(row) for row in await store.placements(tx)], at=at)


def _placement(row: Any) -> Placement:
    node = FirmId(row.node) if is_firm(row.node) else CohortName(row.node)
    parent = CohortName(row.parent) if row.parent is not None else None
    return Placement(row.version, node, parent, row.weight_milli, row.effective_from)
