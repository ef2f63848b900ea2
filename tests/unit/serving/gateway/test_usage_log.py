"""The log is durable before it says so, survives torn lines and a full disk, and is shipped exactly once."""

import asyncio
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kit.errors import Conflict, Unavailable
from serving.gateway import usage_log as module
from serving.gateway.shipper import Shipper
from serving.gateway.usage_log import UsageLog, decode, encode, read_segment
from serving.metering import Closed, Counted, Opened, Outcome, Subject, Tokens
from tests.support.until import until_async


def subject(id: str = "req_1") -> Subject:
    return Subject(id, "key_1", "firm_1", "prj_1", "合流", "base", None, True, "eng_1", 1_000)


def closed(id: str, output: int = 2) -> Closed:
    return Closed(subject(id), Tokens(3, 1, output), Outcome.COMPLETED)


class Sink:
    def __init__(self) -> None:
        self.taken: list[Closed] = []
        self.down = False

    async def ingest(self, records: Sequence[Closed]) -> None:
        if self.down:
            raise Unavailable("the ledger is away")
        self.taken += records

    async def spend(self, grant: Any, now: Any) -> dict[str, object]:
        return {}


@pytest.mark.parametrize(
    "record", [Opened(subject(), Tokens(1, 0, 0)), Counted("req_1", Tokens(1, 0, 9)), closed("req_1")]
)
def test_a_record_comes_back_as_it_was_written(record: Any) -> None:
    assert decode(encode(record).rstrip(b"\n")) == record


def test_a_damaged_line_is_no_record() -> None:
    line = encode(closed("req_1")).rstrip(b"\n")
    assert decode(line[:-1]) is None
    assert decode(line.replace(b'"e"', b'"o"')) is None
    assert decode(b"") is None


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    segment = tmp_path / "usage-00000001.log"
    whole = encode(closed("req_1"))
    segment.write_bytes(whole + encode(closed("req_2"))[:-5])
    assert list(read_segment(segment)) == [closed("req_1")]


async def test_a_record_is_on_disk_when_the_log_says_so(tmp_path: Path) -> None:
    log = UsageLog(tmp_path)
    seen: list[list[Any]] = []
    for n in range(3):
        log.append(encode(closed(f"req_{n}")), lambda: seen.append(list(read_segment(log.path))))

    async def said() -> bool:
        return len(seen) == 3

    await until_async(said, seconds=5, what="the log to be synced")
    assert seen[0] == [closed(f"req_{n}") for n in range(3)]
    log.close()


async def test_a_disk_that_turns_slow_is_left_to_a_thread_and_the_order_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = UsageLog(tmp_path)
    sync = os.fdatasync
    synced_by: list[str] = []
    durable: list[int] = []

    def slow(fd: int) -> None:
        synced_by.append(threading.current_thread().name)
        threading.Event().wait(module.HICCUP_SECONDS + 0.01)
        sync(fd)

    monkeypatch.setattr(module.os, "fdatasync", slow)
    for n in range(4):
        log.append(encode(closed(f"req_{n}")), lambda n=n: durable.append(n))
        await asyncio.sleep(0)

    async def all_durable() -> bool:
        return len(durable) == 4

    await until_async(all_durable, seconds=5, what="the log to be synced")
    assert synced_by[0] == "MainThread"
    assert set(synced_by[1:]) == {"usage-log"}, "the loop waited for a slow disk once"
    assert durable == [0, 1, 2, 3]
    assert list(read_segment(log.path)) == [closed(f"req_{n}") for n in range(4)]
    log.close()


async def test_what_comes_while_the_thread_syncs_gathers_and_is_synced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = UsageLog(tmp_path)
    sync, syncs, go = os.fdatasync, 0, threading.Event()
    durable: list[int] = []

    def slow(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        if threading.current_thread().name == "usage-log":
            assert go.wait(10)
        sync(fd)

    monkeypatch.setattr(module, "QUICK_SECONDS", 0.0)  # from the second sync on it is the thread's
    monkeypatch.setattr(module.os, "fdatasync", slow)
    for n in range(12):
        log.append(encode(closed(f"req_{n}")), lambda n=n: durable.append(n))
        await asyncio.sleep(0)
    assert durable == [0]
    go.set()

    async def all_durable() -> bool:
        return len(durable) == 12

    await until_async(all_durable, seconds=5, what="the log to be synced")
    assert durable == list(range(12))
    assert syncs == 3, "one by the loop, one by the thread, and one for the ten that came meanwhile"
    log.close()


async def test_two_gateways_never_write_in_one_folder(tmp_path: Path) -> None:
    log = UsageLog(tmp_path)
    with pytest.raises(Conflict, match="another gateway"):
        UsageLog(tmp_path)
    log.close()
    UsageLog(tmp_path).close()


async def test_a_full_disk_stops_admission_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = False
    write = os.write

    def write_some(fd: int, data: Any) -> int:
        if not full:
            return write(fd, data)
        if len(data) > 7:
            return write(fd, bytes(data[:7]))  # a disk fills in the middle of a line
        raise OSError(errno.ENOSPC, "No space left on device")

    def reserve(*_: object) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "write", write_some)
    monkeypatch.setattr(module.os, "posix_fallocate", reserve)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    log = UsageLog(tmp_path)
    durable: list[str] = []
    full = True
    log.append(encode(closed("req_1")), lambda: durable.append("req_1"))

    async def ill() -> bool:
        return not log.healthy

    async def well() -> bool:
        return log.healthy

    await until_async(ill, seconds=5, what="the log to fall ill")
    assert durable == []
    assert not (tmp_path / "ballast").exists()
    full = False
    await until_async(well, seconds=5, what="the log to recover")
    assert durable == ["req_1"]
    assert list(read_segment(log.path)) == [closed("req_1")]
    log.close()


async def test_everything_is_shipped_once_and_its_segments_are_deleted(tmp_path: Path) -> None:
    log, sink = UsageLog(tmp_path), Sink()
    shipper = Shipper(log, sink, backlog_max=100)
    first = log.path
    shipper.count(subject("req_1"), Tokens(3, 0, 1))
    shipper.end(closed("req_2"), lambda: None)
    log.rotate()
    shipper.count(subject("req_1"), Tokens(3, 0, 5))
    await _durable(shipper, 1)
    assert await shipper.ship()
    assert sink.taken == [closed("req_2")]
    assert first.exists(), "an open stream began in it"
    shipper.end(closed("req_1", 9), lambda: None)
    await _durable(shipper, 1)
    assert await shipper.ship()
    assert sink.taken == [closed("req_2"), closed("req_1", 9)]
    assert not first.exists()
    log.close()


async def test_a_killed_gateways_log_is_replayed_and_then_deleted(tmp_path: Path) -> None:
    old = tmp_path / "usage-00000007.log"
    lines = [Opened(subject("req_1"), Tokens(3, 0, 1)), Counted("req_1", Tokens(3, 0, 6)), closed("req_2")]
    old.write_bytes(b"".join(map(encode, lines)))
    log, sink = UsageLog(tmp_path), Sink()
    sink.down = True
    shipper = Shipper(log, sink, backlog_max=100)
    assert not await shipper.ship()
    assert old.exists()
    sink.down = False
    assert await shipper.ship()
    assert sink.taken == [Closed(subject("req_1"), Tokens(3, 0, 6), Outcome.GATEWAY_KILLED), closed("req_2")]
    assert not old.exists()
    assert log.path.name == "usage-00000008.log"
    log.close()


async def test_a_kill_between_two_segments_bills_the_last_count(tmp_path: Path) -> None:
    log, sink = UsageLog(tmp_path), Sink()
    shipper = Shipper(log, sink, backlog_max=100)
    shipper.count(subject("req_1"), Tokens(3, 0, 1))
    log.rotate()
    shipper.count(subject("req_1"), Tokens(3, 0, 5))
    log.rotate()
    shipper.end(closed("req_2"), lambda: None)
    await _durable(shipper, 1)
    await shipper.ship()
    log.close()  # killed here: nothing else was written
    again = UsageLog(tmp_path)
    replayed = Shipper(again, sink, backlog_max=100)
    await replayed.ship()
    assert [record.tokens.output for record in sink.taken if record.subject.id == "req_1"] == [5]
    again.close()


async def test_an_unreachable_ledger_fills_the_backlog_and_then_it_is_full(tmp_path: Path) -> None:
    log, sink = UsageLog(tmp_path), Sink()
    shipper = Shipper(log, sink, backlog_max=2)
    sink.down = True
    for n in range(2):
        shipper.end(closed(f"req_{n}"), lambda: None)
    await _durable(shipper, 2)
    assert not await shipper.ship()
    assert (shipper.full, shipper.late) == (True, True)
    sink.down = False
    assert await shipper.ship()
    assert (shipper.full, shipper.late, shipper.shipped) == (False, False, 2)
    log.close()


async def _durable(shipper: Shipper, count: int) -> None:
    async def enough() -> bool:
        await asyncio.sleep(0)
        return shipper.backlog >= count

    await until_async(enough, seconds=5, what="the records to be durable")
