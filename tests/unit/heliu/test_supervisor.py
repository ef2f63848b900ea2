"""The supervisor, on real child processes that do nothing but live."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from heliu.supervisor.backoff import failures_in_a_row, restart_delay_seconds
from heliu.supervisor.down import end_leftovers
from heliu.supervisor.keep import Supervisor
from heliu.supervisor.records import INSTANCE_VARIABLE, InstanceRecord, ProcessRef, RunFolder, ServiceRecord
from heliu.supervisor.services import Service
from kit.errors import Unavailable
from tests.support.until import until, until_async

FOREVER = (sys.executable, "-c", "import signal; signal.pause()")
PARENT = (sys.executable, "-c", "import subprocess, sys; subprocess.run(['sleep', '600'], start_new_session=True)")
MARK = "unit0123456789ab"


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


def service(name: str, command: tuple[str, ...] = FOREVER, **options: object) -> Service:
    return Service(name, command, dict, options.pop("ready", yes), **options)  # type: ignore[arg-type]


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Supervisor]:
    services = [
        service("first"),
        service("second", after=("first",), ends_with=("first",)),
        service("step", (sys.executable, "-c", ""), after=("first",), once=True),
        service("third", PARENT, after=("step",)),
    ]
    supervisor = Supervisor(services, home=tmp_path, instance_id=MARK, report=lambda *_: None)
    async with asyncio.timeout(20):
        await supervisor.start()
    yield supervisor
    await supervisor.stop()


def record(home: Path, name: str) -> ServiceRecord:
    return {found.name: found for found in RunFolder(home).services()}[name]


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 20.0), (1000, 20.0)], ids=str
)
def test_a_service_that_keeps_dying_is_started_again_ever_more_slowly(failures: int, seconds: float) -> None:
    assert restart_delay_seconds(failures) == seconds


def test_a_service_that_ran_half_a_minute_starts_its_count_again() -> None:
    assert failures_in_a_row(5, ran_seconds=29.9) == 6
    assert failures_in_a_row(5, ran_seconds=30.0) == 1


def test_a_process_id_with_another_start_time_is_nobody_we_know() -> None:
    here = ProcessRef.of(psutil.Process())
    assert here.find() is not None
    assert here.model_copy(update={"create_time": here.create_time - 5}).find() is None


async def test_what_dies_is_started_again_and_counted(platform: Supervisor, tmp_path: Path) -> None:
    before = record(tmp_path, "third").process
    os.kill(before.pid, signal.SIGKILL)

    async def restarted() -> bool:
        return record(tmp_path, "third").restarts == 1 and record(tmp_path, "third").process.find() is not None

    await until_async(restarted, seconds=10, what="the restart of the third service")
    assert record(tmp_path, "third").process != before


async def test_what_a_dead_service_left_running_is_ended(platform: Supervisor, tmp_path: Path) -> None:
    async def has_a_child() -> list[ProcessRef]:
        return record(tmp_path, "third").tree

    (child,) = await until_async(has_a_child, seconds=10, what="the note of the child")
    os.kill(record(tmp_path, "third").process.pid, signal.SIGKILL)

    async def gone() -> bool:
        return child.find() is None

    await until_async(gone, seconds=10, what="the end of the orphan")


async def test_a_service_that_is_nothing_without_another_restarts_with_it(platform: Supervisor, tmp_path: Path) -> None:
    second = record(tmp_path, "second").process
    os.kill(record(tmp_path, "first").process.pid, signal.SIGKILL)

    async def both_are_new() -> bool:
        return record(tmp_path, "first").restarts == 1 and record(tmp_path, "second").restarts == 1

    await until_async(both_are_new, seconds=15, what="the restart of both")
    assert second.find() is None


async def test_stopping_ends_everything_and_leaves_no_record(tmp_path: Path) -> None:
    supervisor = Supervisor([service("only", PARENT)], home=tmp_path, instance_id=MARK, report=lambda *_: None)
    await supervisor.start()
    process = record(tmp_path, "only").process.find()
    assert process is not None
    (child,) = until(lambda: process.children(), seconds=10, what="its child")
    await supervisor.stop()
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert list((tmp_path / "run").glob("*.json")) == []


async def test_a_service_that_never_gets_ready_is_named_with_its_log(tmp_path: Path) -> None:
    never = service("slow", ready=no, ready_seconds_max=0.3)
    supervisor = Supervisor([never], home=tmp_path, instance_id=MARK, report=lambda *_: None)
    with pytest.raises(Unavailable, match="slow does not start: it did not answer") as caught:
        await supervisor.start()
    await supervisor.stop()
    assert caught.value.hint is not None
    assert "slow.log" in caught.value.hint


async def test_a_service_that_only_dies_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    dying = service("broken", (sys.executable, "-c", "raise SystemExit('no such schema')"), once=True)
    supervisor = Supervisor([dying], home=tmp_path, instance_id=MARK, report=lambda *_: None)
    with pytest.raises(Unavailable, match="broken does not start: it ended with code 1: no such schema"):
        await supervisor.start()
    await supervisor.stop()


def test_down_ends_what_a_killed_supervisor_left_and_nothing_else(tmp_path: Path) -> None:
    ours = subprocess.Popen(PARENT, env=os.environ | {INSTANCE_VARIABLE: "feedfacefeedface"}, start_new_session=True)
    orphan = subprocess.Popen(FOREVER, env=os.environ | {INSTANCE_VARIABLE: "feedfacefeedface"})
    foreign = subprocess.Popen(FOREVER, env=os.environ | {INSTANCE_VARIABLE: "another"})
    try:
        run = RunFolder(tmp_path)
        gone = ProcessRef(pid=ours.pid, create_time=1.0)
        run.write("instance", InstanceRecord(id="feedfacefeedface", supervisor=gone))
        run.write("api", ServiceRecord(name="api", process=ProcessRef.of(psutil.Process(ours.pid))))
        run.write("stale", ServiceRecord(name="stale", process=ProcessRef(pid=foreign.pid, create_time=1.0)))
        (child,) = until(lambda: psutil.Process(ours.pid).children(), seconds=10, what="the child")
        said: list[str] = []
        assert end_leftovers(tmp_path, said.append) == 3
        assert ours.wait(5) == -signal.SIGTERM
        assert orphan.wait(5) == -signal.SIGTERM
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        assert foreign.poll() is None, "a process of somebody else was touched"
        assert "3 processes" in said[0]
        assert run.instance() is None
    finally:
        foreign.kill()
        foreign.wait()
