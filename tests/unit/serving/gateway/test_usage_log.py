"""The log is durable before it says so, and survives torn lines, failing syncs and a full disk."""

import asyncio
import errno
import os
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from kit.errors import Conflict
from serving.gateway import usage_log as module
from serving.gateway.usage_lines import decode, encode, read_segment
from serving.gateway.usage_log import UsageLog
from serving.metering import Counted, Opened, Tokens
from tests.support.until import until_async
from tests.support.usage import closed, subject


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


async def quiet_turns() -> None:
    """So many that the log no longer waits for more to come."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_records_share_a_sync_while_each_turn_brings_more_but_none_waits_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = UsageLog(tmp_path)
    sync = os.fdatasync
    synced: list[int] = []
    durable: list[int] = []

    def counted(fd: int) -> None:
        sync(fd)
        synced.append(len(durable))

    monkeypatch.setattr(module.os, "fdatasync", counted)
    monkeypatch.setattr(module, "GATHER_SECONDS", 60.0)
    for n in range(5):
        log.append(encode(closed(f"req_{n}")), lambda n=n: durable.append(n))
        await asyncio.sleep(0)
        assert not durable, "the next turn may bring more"
    await quiet_turns()
    assert (durable, synced) == ([0, 1, 2, 3, 4], [0])
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.0)
    log.append(encode(closed("req_5")), lambda: durable.append(5))
    await asyncio.sleep(0)
    assert durable[5:] == [5], "it has waited long enough"
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
        await quiet_turns()

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
        await quiet_turns()
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
    write = os.pwrite

    def write_some(fd: int, data: Any, at: int) -> int:
        if not full:
            return write(fd, data, at)
        if len(data) > 7:
            return write(fd, bytes(data[:7]), at)  # a disk fills in the middle of a line
        raise OSError(errno.ENOSPC, "No space left on device")

    def reserve(*_: object) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", write_some)
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


async def test_what_a_failed_sync_may_have_lost_is_written_again_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fdatasync
    failures = 0

    def fail_twice(fd: int) -> None:
        nonlocal failures
        if failures < 2:
            failures += 1
            os.pwrite(fd, bytes(1_000), 0)  # the pages are dropped: the disk still has the zeros from before
            raise OSError(errno.EIO, "Input/output error")
        sync(fd)

    monkeypatch.setattr(module.os, "fdatasync", fail_twice)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    log = UsageLog(tmp_path)
    durable: list[int] = []
    for n in range(2):
        log.append(encode(closed(f"req_{n}")), lambda n=n: durable.append(n))
        await asyncio.sleep(0)

    async def both() -> bool:
        return durable == [0, 1]

    await until_async(both, seconds=5, what="the log to be synced")
    assert failures == 2
    assert list(read_segment(log.path)) == [closed("req_0"), closed("req_1")]
    log.close()


def test_an_outcome_of_another_version_is_a_damaged_line() -> None:
    line = encode(closed("req_1")).rstrip(b"\n")
    payload = line[9:].replace(b'"completed"', b'"paused"')
    assert decode(b"%08x %s" % (zlib.crc32(payload), payload)) is None
