"""End what one `heliu up` started and nothing else, also when its supervisor was killed."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from heliu.supervisor import postgres_keeper, records
from heliu.supervisor.preflight import running_instance
from heliu.supervisor.records import ProcessRef, RunFolder
from kit.postgres import embedded_pid

SUPERVISOR_SECONDS_MAX = 90

Say = Callable[[str], None]


def take_down(home: Path, say: Say) -> int:
    """Stop the platform of this home; returns how many processes had to be ended without their supervisor."""
    home = home.resolve()
    if instance := running_instance(home):
        say(f"stopping the platform in {home}")
        _tell_supervisor(instance.supervisor, say)
    return end_leftovers(home, say)


def end_leftovers(home: Path, say: Say) -> int:
    """End what an instance left running whose supervisor is gone; returns how many processes that was."""
    run = RunFolder(home)
    instance = run.instance()
    services = {record.name: record for record in run.services()}
    database = services.pop("postgres", None)
    refs = [ref for record in services.values() for ref in (record.process, *record.tree)]
    postmaster = embedded_pid(home / "postgres")
    if instance:
        refs += [ref for ref in records.marked(instance.id) if not _is_database(ref, postmaster, database)]
    ended = records.end(refs, grace_seconds=8)
    if ended:
        say(f"ended {ended} processes of an instance whose supervisor is gone")
    if instance and (home / "postgres").exists():
        ended += _stop_database(home / "postgres", database, say)
    run.clear()
    return ended


def _tell_supervisor(supervisor: ProcessRef, say: Say) -> None:
    process = supervisor.find()
    if process is None:
        return
    process.terminate()
    deadline = time.monotonic() + SUPERVISOR_SECONDS_MAX
    while supervisor.find() is not None:
        if time.monotonic() > deadline:
            say("the supervisor does not end; killing it")
            process.kill()
        time.sleep(0.1)


def _is_database(ref: ProcessRef, postmaster: int | None, keeper: records.ServiceRecord | None) -> bool:
    if keeper and ref.pid == keeper.process.pid:
        return True
    process = ref.find()
    if process is None or postmaster is None:
        return False
    try:
        return ref.pid == postmaster or process.ppid() == postmaster
    except psutil.Error:
        return False


def _stop_database(folder: Path, keeper: records.ServiceRecord | None, say: Say) -> int:
    ended = records.end([keeper.process], grace_seconds=30) if keeper else 0
    postmaster = embedded_pid(folder)
    if postmaster is not None and psutil.pid_exists(postmaster):
        postgres_keeper.stop(folder)
        say("stopped the database")
        ended += 1
    return ended
