"""The process that charges usage gives way to answers, and gets a share where it would never run."""

import os
import signal
from collections.abc import AsyncIterator

import pytest

from kit.db import Database
from kit.errors import Unavailable
from serving.gateway.control_plane import ControlPlane
from serving.gateway.ledger_process import LedgerProcess


@pytest.fixture
async def charging(db: Database, database_url: str) -> AsyncIterator[LedgerProcess]:
    process = LedgerProcess(ControlPlane(db, holder="gw_1", lease_seconds=360), database_url)
    yield process
    await process.close()


async def test_charging_runs_when_nobody_else_wants_the_processor(charging: LedgerProcess) -> None:
    await charging.ingest([])
    assert charging.pid is not None
    assert os.sched_getscheduler(charging.pid) == os.SCHED_IDLE


async def test_charging_that_never_gets_to_run_is_started_again_with_a_share(charging: LedgerProcess) -> None:
    await charging.ingest([])
    starved = charging.pid
    assert starved is not None
    os.kill(starved, signal.SIGSTOP)
    with pytest.raises(Unavailable):
        await charging.ingest([])
    await charging.ingest([])
    assert charging.pid is not None and charging.pid != starved
    assert os.sched_getscheduler(charging.pid) == os.SCHED_OTHER
    assert os.getpriority(os.PRIO_PROCESS, charging.pid) > os.getpriority(os.PRIO_PROCESS, 0)
