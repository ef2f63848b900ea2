"""A scheduler controller as a process of its own, to be killed: `python -m tests.support.controller_process`."""

import asyncio

from kit.blobs import Blobs
from kit.clock import SystemClock
from kit.db import Database
from kit.settings import Settings
from kit.telemetry import configure_logging
from scheduler.main import run_background


async def main() -> None:
    """Run the scheduler's loop until killed."""
    settings = Settings()
    assert settings.database_url is not None, "HELIU_DATABASE_URL names the database"
    db, blobs = Database(settings.database_url), Blobs(settings.blobs)
    await run_background(db, blobs, SystemClock(), settings, asyncio.Event())


if __name__ == "__main__":
    configure_logging("controller")
    asyncio.run(main())
