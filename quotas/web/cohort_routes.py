"""The tree in which firms share, as administrators see and change it."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from quotas import cohort_tree
from quotas.access import Action, require
from quotas.cohorts import is_firm
from quotas.vocabulary import CohortName, FirmId
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.names import CohortNode
from quotas.web.schemas import Instant, PlacementIn, PlacementOut

router = APIRouter(prefix="/api/cohorts", tags=["quotas"])

Node = Annotated[CohortNode, Path()]


@router.put("/{node}")
async def place(
    node: Node, body: PlacementIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> PlacementOut:
    """Hang a firm or a cohort below another cohort, now or from a day to come. A new name makes a cohort."""
    require(principal, Action.QUOTA_SET, firm_id=FirmId(node) if is_firm(node) else None)
    async with db.transaction() as tx:
        row = await cohort_tree.place(
            tx,
            FirmId(node) if is_firm(node) else CohortName(node),
            parent=CohortName(body.parent) if body.parent else None,
            weight_milli=body.weight_milli,
            effective_from=body.effective_from,
            reason=body.reason,
            by=principal,
            now=now,
            origin=origin,
        )
        return PlacementOut.model_validate(row)


@router.get("")
async def tree(
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
    at: Annotated[Instant | None, Query(description="any past or future instant; default: now")] = None,
) -> list[PlacementOut]:
    """The whole tree at an instant, for the platform's staff: it names every firm."""
    require(principal, Action.QUOTA_READ, firm_id=None)
    async with db.transaction() as tx:
        placed = await cohort_tree.cohort_tree(tx, at=at or now)
        return [PlacementOut.model_validate(one) for _, one in sorted(placed.items())]
