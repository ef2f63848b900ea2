"""The composition of `quotas`: its routes, and what runs on the leader."""

from fastapi import APIRouter

from kit.clock import Clock
from kit.db import Database
from kit.settings import Settings
from quotas.web import firm_routes, key_routes, member_routes, pages, quota_routes


def routers(db: Database, clock: Clock, settings: Settings) -> list[APIRouter]:
    """Every route of this package. The app carries `db` and `clock` on its state (see `quotas.web.deps`)."""
    return [
        firm_routes.router,
        member_routes.router,
        key_routes.router,
        quota_routes.router,
        pages.router,
    ]
