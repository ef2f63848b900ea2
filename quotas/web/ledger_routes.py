"""The ledger itself: examine it, and see what is on hold."""

from pathlib import Path

from fastapi import APIRouter

from quotas import ledger_service
from quotas.access import Action, require
from quotas.web.deps import CurrentPrincipal, Db
from quotas.web.ledger_schemas import CheckOut, OpenHoldOut


def router(heads: Path) -> APIRouter:
    """Routes that compare the ledger's blocks with the heads written to `heads`."""
    routes = APIRouter(prefix="/api/ledger", tags=["ledger"])

    @routes.get("/check")
    async def check(principal: CurrentPrincipal, db: Db) -> CheckOut:
        """Examine every invariant over the whole ledger: sums, balances, holds, charges, chain."""
        require(principal, Action.LEDGER_VERIFY, firm_id=None)
        async with db.transaction() as tx:
            return CheckOut.of(await ledger_service.check_report(tx, heads))

    @routes.get("/holds")
    async def open_holds(principal: CurrentPrincipal, db: Db) -> list[OpenHoldOut]:
        """What is on hold now, by name."""
        require(principal, Action.LEDGER_VERIFY, firm_id=None)
        async with db.transaction() as tx:
            return [OpenHoldOut.of(hold) for hold in await ledger_service.open_holds(tx)]

    return routes
