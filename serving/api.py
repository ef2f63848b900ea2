"""The door to `serving` for the package above it and for its own gateway. Functions take the caller's transaction."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from serving.adapters import store
from serving.counting import Line as CountLine
from serving.counting import Verdict as CountVerdict
from serving.engines import EngineUsage as EngineUsage
from serving.engines import counts as engine_counters
from serving.engines import reconcile as reconcile
from serving.engines import record_usage as record_engine_usage
from serving.routes_snapshot import route_table as route_table

__all__ = [
    "MIGRATIONS",
    "CountLine",
    "CountVerdict",
    "EngineUsage",
    "engine_counters",
    "note_adapter_use",
    "reconcile",
    "record_engine_usage",
    "route_table",
]

MIGRATIONS: Path = Path(__file__).parent / "adapters" / "migrations"


async def note_adapter_use(tx: AsyncSession, used: Mapping[str, datetime]) -> int:
    """Say when adapters were last asked for (adapter id → instant), loaded or not: the last wanted ones stay loaded.

    Returns how many were news. One that is not loaded is loaded within a second or two of this, when there is room.
    """
    return await store.touch_adapters(tx, dict(used))
