"""The composition of `quotas`: its routes, and what runs on the leader."""

import asyncio
import itertools
import logging
from functools import cache
from pathlib import Path

from fastapi import APIRouter

from kit.blobs import Blobs
from kit.clock import Clock
from kit.db import Database
from kit.errors import Unavailable
from kit.secret_files import load_or_create
from kit.settings import Settings
from quotas.alert_delivery import AlertSettings, Sender, deliver
from quotas.audit_chain import seal_audit
from quotas.budgets import watch_budgets
from quotas.ledger_service import close_months, sweep
from quotas.sessions import forget_old_attempts
from quotas.web import (
    approval_routes,
    audit_routes,
    budget_routes,
    ceiling_routes,
    cohort_routes,
    discount_routes,
    document_routes,
    firm_routes,
    key_routes,
    ledger_routes,
    member_routes,
    money_routes,
    pages,
    price_routes,
    quota_request_routes,
    quota_routes,
    usage_routes,
)

log = logging.getLogger(__name__)

SWEEP_SECONDS = 0.5
SWEEPS_PER_LOOK_AT_MONTHS = 600
SWEEPS_PER_LOOK_AT_BUDGETS = 4
HEADS = "ledger-heads.jsonl"
AUDIT_HEADS = "audit-heads.jsonl"


def routers(db: Database, clock: Clock, settings: Settings) -> list[APIRouter]:
    """Every route of this package. The app carries `db` and `clock` on its state (see `quotas.web.deps`)."""
    return [
        firm_routes.router,
        member_routes.router,
        key_routes.router,
        quota_routes.router,
        quota_request_routes.router,
        cohort_routes.router,
        ceiling_routes.router,
        audit_routes.router(settings.home / AUDIT_HEADS),
        price_routes.router,
        discount_routes.router,
        usage_routes.router,
        document_routes.router(cache(lambda: Blobs(settings.blobs))),
        money_routes.router,
        approval_routes.router,
        budget_routes.router,
        budget_routes.channel_router(alert_sender(settings)),
        ledger_routes.router(settings.home / HEADS),
        pages.router,
    ]


def alert_sender(settings: Settings) -> Sender:
    """How alerts leave this installation."""
    return Sender(AlertSettings(), load_or_create(settings.secret_file("webhook_key")).encode())


async def run_background(db: Database, clock: Clock, stop: asyncio.Event, heads: Path | None = None) -> None:
    """Sweep until told to stop: expire holds and leases, seal blocks, close months. Only the leader calls this.

    Block heads go to `heads`; by default a file in this installation's home, outside the database.
    """
    path = heads or Settings().home / HEADS
    sender = alert_sender(Settings())
    months_wait = False
    for turn in itertools.count():
        if stop.is_set():
            return
        try:
            seldom = turn % SWEEPS_PER_LOOK_AT_MONTHS == 0
            await sweep(db, clock.now(), path, months=False)
            if seldom or months_wait:
                months_wait = (await close_months(db, clock.now())).more
            await seal_audit(db, clock.now(), path.with_name(AUDIT_HEADS))
            if turn % SWEEPS_PER_LOOK_AT_BUDGETS == 0:
                await watch_budgets(db, clock.now())
                await deliver(db, sender, clock.now())
            if seldom:
                await forget_old_attempts(db, now=clock.now())
        except Unavailable as error:
            log.warning("the sweep waits for the database", extra={"error": str(error)})
        except Exception:  # a sweep that fails is tried again; what it did is committed step by step
            log.exception("a sweep failed")
        try:
            await asyncio.wait_for(stop.wait(), SWEEP_SECONDS)
        except TimeoutError:
            continue
