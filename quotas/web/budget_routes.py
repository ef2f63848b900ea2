"""Budgets, where their alerts go, and what became of each message."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from kit.auth import Principal
from quotas import alert_channels, budgets
from quotas.access import Action, home_firm, require
from quotas.alert_delivery import Sender, webhook_policy
from quotas.alerts import signing_secret
from quotas.applications import firm_row
from quotas.vocabulary import ChannelKind, FirmId, KeyId, ProjectId
from quotas.web.budget_schemas import AlertOut, BudgetIn, BudgetOut, ChannelIn, ChannelOut
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.schemas import FirmQuery

router = APIRouter(prefix="/api", tags=["budgets"])


def _firm(principal: Principal, firm_id: str | None, action: Action) -> FirmId:
    firm = FirmId(firm_id) if firm_id else home_firm(principal)
    require(principal, action, firm_id=firm)
    return firm


@router.post("/budgets", status_code=201)
async def set_budget(body: BudgetIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> BudgetOut:
    """Give a firm, a project or a key so much a month."""
    firm = _firm(principal, body.firm_id, Action.BUDGET_MANAGE)
    spec = budgets.BudgetSpec(
        firm,
        body.amount_micro_yuan,
        body.thresholds,
        body.hard_stop,
        ProjectId(body.project_id) if body.project_id else None,
        KeyId(body.key_id) if body.key_id else None,
    )
    async with db.transaction() as tx:
        made = await budgets.set_budget(tx, spec, by=principal, now=now, origin=origin)
        rows = await budgets.budgets_of(tx, firm, now=now)
        return next(BudgetOut.model_validate(dict(row)) for row in rows if row["id"] == made)


@router.get("/budgets")
async def list_budgets(principal: CurrentPrincipal, db: Db, now: Now, firm_id: FirmQuery = None) -> list[BudgetOut]:
    """A firm's budgets and what this month has spent of each."""
    firm = _firm(principal, firm_id, Action.BILLING_READ)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        return [BudgetOut.model_validate(dict(row)) for row in await budgets.budgets_of(tx, firm, now=now)]


@router.delete("/budgets/{budget_id}", status_code=204)
async def end_budget(budget_id: str, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> None:
    """End a budget; what it stopped goes on."""
    async with db.transaction() as tx:
        row = await budgets.budget_row(tx, budget_id)
        missing = budgets.budget_not_found(budget_id)
        require(principal, Action.BUDGET_MANAGE, firm_id=FirmId(row["firm_id"]), missing=missing)
        await budgets.end_budget(tx, row, by=principal, now=now, origin=origin)


@router.delete("/alert-channels/{channel_id}", status_code=204)
async def end_channel(channel_id: str, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> None:
    """Send nothing there any more."""
    async with db.transaction() as tx:
        row = await alert_channels.thing(tx, "alert_channel", channel_id)
        missing = alert_channels.thing_not_found("alert_channel", channel_id)
        require(principal, Action.BUDGET_MANAGE, firm_id=FirmId(row["firm_id"]), missing=missing)
        await alert_channels.end_channel(tx, row, by=principal, now=now, origin=origin)


@router.get("/alerts")
async def list_alerts(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[AlertOut]:
    """A firm's alerts, newest first, and what became of each message; the dead ones can be replayed."""
    firm = _firm(principal, firm_id, Action.BILLING_READ)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        return [AlertOut.model_validate(dict(row)) for row in await alert_channels.alerts_of(tx, firm)]


@router.post("/deliveries/{delivery_id}/replay", status_code=202)
async def replay(delivery_id: str, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> None:
    """Send a message again; it keeps its id."""
    async with db.transaction() as tx:
        row = await alert_channels.thing(tx, "delivery", delivery_id)
        missing = alert_channels.thing_not_found("delivery", delivery_id)
        require(principal, Action.BUDGET_MANAGE, firm_id=FirmId(row["firm_id"]), missing=missing)
        await alert_channels.replay(tx, row, by=principal, now=now, origin=origin)


def channel_router(sender: Sender) -> APIRouter:
    """Routes that show the secrets by which `sender` signs."""
    routes = APIRouter(prefix="/api", tags=["budgets"])

    def shown(row: Mapping[str, Any]) -> ChannelOut:
        signs = row["kind"] == ChannelKind.WEBHOOK
        return ChannelOut.model_validate({**row, "secret": signing_secret(sender.master, row["id"]) if signs else None})

    @routes.post("/alert-channels", status_code=201)
    async def add_channel(body: ChannelIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> ChannelOut:
        """Send a firm's alerts to a webhook or an e-mail address."""
        firm, policy = _firm(principal, body.firm_id, Action.BUDGET_MANAGE), webhook_policy(sender.settings)
        async with db.transaction() as tx:
            row = await alert_channels.add_channel(
                tx, firm, body.kind, body.target, policy=policy, by=principal, now=now, origin=origin
            )
            return shown(row)

    @routes.get("/alert-channels")
    async def list_channels(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[ChannelOut]:
        """Where a firm's alerts go."""
        firm = _firm(principal, firm_id, Action.BUDGET_MANAGE)
        async with db.transaction() as tx:
            await firm_row(tx, firm)
            return [shown(row) for row in await alert_channels.channels_of(tx, firm)]

    return routes
