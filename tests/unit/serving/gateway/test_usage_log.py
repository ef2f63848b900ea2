"""The log is durable before it says so, and survives torn lines, failing syncs and a full disk."""

import asyncio
import errno
import os
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.errors import Conflict
from serving.gateway import usage_log as module
from serving.gateway.kernel_sync import KernelSync
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


class HeldSync(KernelSync):
    """The kernel's, but each sync is said to be done only when the test lets it."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.begun = 0
        self.said: list[Callable[[], None]] = []

    def begin(self, fd: int, done: Callable[[bool], None]) -> bool:
        self.begun += 1
        return super().begin(fd, lambda on_disk: self.said.append(lambda: done(on_disk)))

    async def let_go(self) -> None:
        """Say so, once the kernel is done with the sync."""

        async def synced() -> bool:
            return bool(self.said)

        await until_async(synced, seconds=5, what="the kernel to sync")
        self.said.pop()()


async def quiet_turns() -> None:
    """So many that the log no longer waits for more to come."""
    for _ in range(3):
        await asyncio.sleep(0)


async def all_of(durable: list[int], count: int) -> None:
    async def there() -> bool:
        return len(durable) == count

    await until_async(there, seconds=5, what="the log to be synced")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[HeldSync]:
    """The syncs of the logs that a test makes."""
    made: list[HeldSync] = []

    def held(_: object) -> HeldSync:
        made.append(HeldSync())
        return made[-1]

    monkeypatch.setattr(module, "KernelSync", held)
    return made


async def test_records_share_a_sync_while_each_turn_brings_more_but_none_waits_for_long(
    tmp_path: Path, kernel: list[HeldSync], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = UsageLog(tmp_path)
    log.at_work = lambda: 100
    durable: list[int] = []
    monkeypatch.setattr(module, "GATHER_SECONDS", 60.0)
    for n in range(5):
        log.append(encode(closed(f"req_{n}")), lambda n=n: durable.append(n))
        await asyncio.sleep(0)
        assert not kernel[0].begun, "the next turn may bring more"
    await quiet_turns()
    assert (kernel[0].begun, durable) == (1, []), "the loop goes on while the kernel syncs"
    await kernel[0].let_go()
    assert durable == [0, 1, 2, 3, 4]
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.0)
    log.append(encode(closed("req_5")), lambda: durable.append(5))
    await asyncio.sleep(0)
    assert kernel[0].begun == 2, "it has waited long enough"
    await kernel[0].let_go()
    log.close()


async def test_nothing_waits_for_more_than_there_are_at_work(tmp_path: Path, kernel: list[HeldSync]) -> None:
    log = UsageLog(tmp_path)
    for at_work, lines in ((0, 1), (1, module.SHARE), (3, 3 * module.SHARE)):
        log.at_work = lambda at_work=at_work: at_work
        begun = kernel[0].begun
        for n in range(lines):
            log.append(encode(closed(f"req_{at_work}_{n}")))
        await asyncio.sleep(0)
        assert kernel[0].begun == begun + 1
        await kernel[0].let_go()
    log.close()


async def test_what_comes_while_the_kernel_syncs_gathers_and_is_synced_together(
    tmp_path: Path, kernel: list[HeldSync]
) -> None:
    log = UsageLog(tmp_path)
    durable: list[int] = []
    for n in range(12):
        log.append(encode(closed(f"req_{n}")), lambda n=n: durable.append(n))
        await quiet_turns()
    assert (kernel[0].begun, durable) == (1, [])
    await kernel[0].let_go()
    assert durable == [0]
    await kernel[0].let_go()
    assert (kernel[0].begun, durable) == (2, list(range(12))), "one for the eleven that came meanwhile"
    assert list(read_segment(log.path)) == [closed(f"req_{n}") for n in range(12)]
    log.close()


async def test_a_new_segment_begins_only_after_what_the_kernel_syncs_of_the_last(
    tmp_path: Path, kernel: list[HeldSync]
) -> None:
    log = UsageLog(tmp_path)
    durable: list[int] = []
    segments = [log.append(encode(closed("req_0")), lambda: durable.append(0))]
    await quiet_turns()
    for n in (1, 2):
        segments.append(log.append(encode(closed(f"req_{n}")), lambda n=n: durable.append(n)))
        log.rotate()
    assert segments[0] is segments[1] is not segments[2]
    await kernel[0].let_go()  # the thread, had it not waited, would have written over what is being synced
    await all_of(durable, 3)
    assert durable == [0, 1, 2]
    assert list(read_segment(segments[0].path)) == [closed("req_0"), closed("req_1")]
    assert list(read_segment(segments[2].path)) == [closed("req_2")]
    log.close()


async def test_a_log_that_closes_waits_for_what_the_kernel_syncs(tmp_path: Path) -> None:
    log = UsageLog(tmp_path)
    durable: list[int] = []
    for n in range(2):
        log.append(encode(closed(f"req_{n}")), lambda n=n: durable.append(n))
        await quiet_turns()
    log.close()
    await all_of(durable, 2)
    assert list(read_segment(log.path)) == [closed("req_0"), closed("req_1")]


class Refusing:
    """A context of the kernel that takes nothing."""

    def __init__(self, why: Exception | None) -> None:
        self.why = why

    def submit(self, _: object) -> int:
        assert self.why is not None
        raise self.why


@pytest.mark.parametrize("why", [None, OverflowError("EAGAIN"), ValueError("EINVAL"), SystemError("EPERM")], ids=repr)
async def test_without_the_kernels_help_a_thread_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: Exception | None
) -> None:
    begin = KernelSync.begin

    def refused(kernel: KernelSync, fd: int, done: Callable[[bool], None]) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "_context", Refusing(why))
            return begin(kernel, fd, done)

    if why is None:
        monkeypatch.setitem(sys.modules, "caio.linux_aio", None)  # as where the kernel has none: importing it fails
    else:
        monkeypatch.setattr(KernelSync, "begin", refused)
    log = UsageLog(tmp_path)
    sync, synced_by, go = os.fdatasync, list[str](), threading.Event()
    durable: list[int] = []

    def slow(fd: int) -> None:
        synced_by.append(threading.current_thread().name)
        assert go.wait(10)
        sync(fd)

    monkeypatch.setattr(module.os, "fdatasync", slow)
    for n in range(12):
        log.append(encode(closed(f"req_{n}")), lambda n=n: durable.append(n))
        await quiet_turns()
    assert not durable
    go.set()
    await all_of(durable, 12)
    assert durable == list(range(12))
    assert synced_by == ["usage-log"] * 2, "one, and one for the eleven that came meanwhile"
    assert list(read_segment(log.path)) == [closed(f"req_{n}") for n in range(12)]
    log.close()


async def test_a_sync_that_failed_is_not_called_done(tmp_path: Path) -> None:
    class Failed:
        def get_value(self) -> None:
            raise SystemError("Input/output error")  # as the library says it

    kernel, said = KernelSync(asyncio.get_running_loop()), list[bool]()

    async def told() -> bool:
        return bool(said)

    with (tmp_path / "file").open("wb") as file:
        assert kernel.begin(file.fileno(), said.append)
        kernel._operation = Failed()  # type: ignore[assignment]
        await until_async(told, seconds=5, what="the end of the sync")
    assert said == [False]
    kernel.close()


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

    def fail_too(_: KernelSync, fd: int, done: Callable[[bool], None]) -> bool:
        os.pwrite(fd, bytes(1_000), 0)
        asyncio.get_running_loop().call_soon(done, False)
        return True

    monkeypatch.setattr(KernelSync, "begin", fail_too)
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
