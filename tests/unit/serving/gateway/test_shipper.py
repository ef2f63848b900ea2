"""Usage reaches the ledger exactly once, however long it is away, whoever is killed, whatever it refuses."""

import asyncio
import errno
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from kit.errors import InvalidInput
from serving.admission import Lease
from serving.gateway import shipper as shipping
from serving.gateway import usage_log as module
from serving.gateway.ports import UNFORESEEN
from serving.gateway.shipper import Shipper
from serving.gateway.usage_lines import decode, encode
from serving.gateway.usage_log import UsageLog
from serving.metering import Closed, Counted, Opened, Outcome, Tokens
from tests.support.until import until_async
from tests.support.usage import Sink, closed, closed_requests, durable, segments, subject


async def test_a_gateway_starts_on_a_full_disk_ships_what_is_there_and_then_admits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "usage-00000001.log"
    old.write_bytes(encode(closed("req_1")))
    fill = module._fill

    def fill_if_there_is_room(path: Path) -> None:
        if old.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        fill(path)

    monkeypatch.setattr(module, "_fill", fill_if_there_is_room)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    log, sink = UsageLog(tmp_path), Sink()
    assert not log.healthy
    shipper = Shipper(log, sink, backlog_bytes_max=1 << 30)
    assert await shipper.ship()
    assert sink.taken == [closed("req_1")]

    async def well() -> bool:
        return log.healthy

    await until_async(well, seconds=5, what="the log to be written")
    shipper.end(closed("req_2"), lambda: None)
    await durable(shipper, 1)
    log.close()


async def test_everything_is_shipped_once_and_its_segments_are_deleted(tmp_path: Path) -> None:
    log, sink = UsageLog(tmp_path), Sink()
    shipper = Shipper(log, sink, backlog_bytes_max=1 << 30)
    first = log.path
    shipper.count(subject("req_1"), Tokens(3, 0, 1))
    shipper.end(closed("req_2"), lambda: None)
    log.rotate()
    shipper.count(subject("req_1"), Tokens(3, 0, 5))
    await durable(shipper, 1)
    assert await shipper.ship()
    assert sink.taken == [closed("req_2")]
    assert first.exists(), "an open stream began in it"
    shipper.end(closed("req_1", 9), lambda: None)
    await durable(shipper, 1)
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
    shipper = Shipper(log, sink, backlog_bytes_max=1 << 30)
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
    shipper = Shipper(log, sink, backlog_bytes_max=1 << 30)
    shipper.count(subject("req_1"), Tokens(3, 0, 1))
    log.rotate()
    shipper.count(subject("req_1"), Tokens(3, 0, 5))
    log.rotate()
    shipper.end(closed("req_2"), lambda: None)
    await durable(shipper, 1)
    await shipper.ship()
    log.close()  # killed here: nothing else was written
    again = UsageLog(tmp_path)
    replayed = Shipper(again, sink, backlog_bytes_max=1 << 30)
    await replayed.ship()
    assert [record.tokens.output for record in sink.taken if record.subject.id == "req_1"] == [5]
    again.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a few dozen records, and a few records in memory."""
    for where, name, value in (
        (module, "SEGMENT_BYTES", 1 << 17), (shipping, "SEGMENT_BYTES", 1 << 17),
        (shipping, "ROTATE_BYTES", 8_000), (shipping, "IN_MEMORY_MAX", 50), (shipping, "BATCH_MAX", 20),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, value)


@pytest.mark.usefixtures("small")
async def test_what_an_unreachable_ledger_does_not_take_waits_on_disk_until_that_is_full(tmp_path: Path) -> None:
    log, sink = UsageLog(tmp_path), Sink()
    sink.down = True
    shipper = Shipper(log, sink, backlog_bytes_max=20 << 17)
    lease, count = Lease("lse_1", "firm_1", 10_000, 10**15), 0
    while not shipper.full:
        for _ in range(10):
            lease.owed += 3
            lease.left -= 3
            shipper.end(closed(f"req_{count}"), lambda: None, lease=lease, charge=3)
            count += 1
        await durable(shipper, count)
        assert count < 5_000, "it is never full"
    assert len(segments(tmp_path)) == 21, "what is written now is the last"
    held = sum(len(parcel.lines) for parcel in (*shipper._in_memory, *shipper._on_disk))
    assert 0 < held <= 50, "the rest is not held in memory"
    assert not await shipper.ship()
    assert lease.owed == 3 * count
    sink.down = False
    assert await shipper.ship()
    assert {record.subject.id for record in sink.taken} == {f"req_{n}" for n in range(count)}
    assert (lease.owed, shipper.full, shipper.late, shipper.backlog) == (0, False, False, 0)
    assert set(segments(tmp_path)) <= {log.path.name}, "what is shipped is deleted"
    log.close()


@pytest.mark.usefixtures("small")
async def test_records_that_come_while_the_disk_is_read_are_neither_lost_nor_settled_early(tmp_path: Path) -> None:
    log, sink = UsageLog(tmp_path), Sink()
    shipper = Shipper(log, sink, backlog_bytes_max=1 << 30)
    lease = Lease("lse_1", "firm_1", 10_000, 10**15)

    def one(n: int) -> None:
        lease.owed += 3
        shipper.end(closed(f"req_{n}"), lambda: None, lease=lease, charge=3)

    for n in range(200):
        one(n)
    await durable(shipper, 200)
    taken = sink.ingest

    async def more_meanwhile(lines: Sequence[bytes]) -> None:
        await taken(lines)
        if len(sink.taken) < 400:
            one(len({record.subject.id for record in sink.taken}) + 1_000)
        for _ in range(3):
            await asyncio.sleep(0)

    sink.ingest = more_meanwhile  # type: ignore[method-assign]

    async def nothing_is_owed() -> bool:
        return await shipper.ship() and lease.owed == 0

    await until_async(nothing_is_owed, seconds=10, what="everything to be shipped")
    assert len({record.subject.id for record in sink.taken}) > 200
    assert shipper.backlog == 0
    log.close()


async def test_records_that_come_while_others_are_charged_go_together_the_next_time(tmp_path: Path) -> None:
    log, sink = UsageLog(tmp_path), Sink()
    shipper = Shipper(log, sink, backlog_bytes_max=1 << 30)
    taken, batches = sink.ingest, list[int]()

    async def more_meanwhile(lines: Sequence[bytes]) -> None:
        batches.append(len(lines))
        for n in range(3):
            shipper.end(closed(f"req_{len(batches)}_{n}"), lambda: None)
        await durable(shipper, len(lines) + 3)
        await taken(lines)

    sink.ingest = more_meanwhile  # type: ignore[method-assign]
    shipper.end(closed("req_0"), lambda: None)
    await durable(shipper, 1)
    async with asyncio.timeout(5):
        assert await shipper.ship()
        assert await shipper.ship()
    assert (batches, shipper.backlog) == ([1, 3], 3)
    log.close()


@pytest.mark.usefixtures("small")
async def test_a_killed_gateways_backlog_on_disk_is_shipped_by_the_next(tmp_path: Path) -> None:
    log, sink = UsageLog(tmp_path), Sink()
    sink.down = True
    shipper = Shipper(log, sink, backlog_bytes_max=1 << 30)
    shipper.count(subject("cut"), Tokens(3, 0, 1))
    for n in range(300):
        shipper.end(closed(f"req_{n}"), lambda: None)
    shipper.count(subject("cut"), Tokens(3, 0, 8))
    await durable(shipper, 300)
    log.close()  # killed here
    again, sink = UsageLog(tmp_path), Sink()
    replayed = Shipper(again, sink, backlog_bytes_max=1 << 30)
    assert replayed.backlog == 301
    (cut,) = replayed._in_memory
    assert len(cut.lines) == 1, "only what was cut is in memory"
    assert await replayed.ship()
    assert Counter(record.subject.id for record in sink.taken) == Counter(["cut", *(f"req_{n}" for n in range(300))])
    assert sink.taken[0] == Closed(subject("cut"), Tokens(3, 0, 8), Outcome.GATEWAY_KILLED)
    assert set(segments(tmp_path)) <= {again.path.name}
    again.close()


class Picky(Sink):
    """A ledger that does not take everything."""

    def __init__(self, *refused: str, code: str = "negative_tokens") -> None:
        super().__init__()
        self.refused, self.code, self.calls = refused, code, 0

    async def ingest(self, lines: Sequence[bytes]) -> None:
        self.calls += 1
        if any(record.subject.id in self.refused for record in closed_requests(lines)):
            raise InvalidInput("more cached tokens than input", code=self.code)
        await super().ingest(lines)


@pytest.mark.parametrize("code", ["negative_tokens", UNFORESEEN])
async def test_a_record_that_the_ledger_never_takes_holds_up_no_other(
    tmp_path: Path, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    log, sink = UsageLog(tmp_path), Picky("req_3", "req_77", code=code)
    shipper = Shipper(log, sink, backlog_bytes_max=1 << 30)
    for n in range(100):
        shipper.end(closed(f"req_{n}"), lambda: None)
    await durable(shipper, 100)
    assert await shipper.ship()
    assert len(sink.taken) == 98
    assert sink.calls < 40
    kept = [decode(line) for line in (tmp_path / "quarantine.log").read_bytes().splitlines()]
    assert kept == [closed("req_3"), closed("req_77")]
    assert (shipper.quarantined, shipper.backlog) == (2, 0)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    log.close()


async def test_a_ledger_that_fails_on_everything_has_nothing_quarantined(tmp_path: Path) -> None:
    log, sink = UsageLog(tmp_path), Picky(*(f"req_{n}" for n in range(4)), code=UNFORESEEN)
    shipper = Shipper(log, sink, backlog_bytes_max=1 << 30)
    for n in range(4):
        shipper.end(closed(f"req_{n}"), lambda: None)
    await durable(shipper, 4)
    assert not await shipper.ship()
    assert (shipper.backlog, shipper.quarantined, shipper.late) == (4, 0, True)
    log.close()
