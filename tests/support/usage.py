"""Usage records for tests, and a ledger in memory that takes them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from kit.errors import Unavailable
from serving.gateway.shipper import Shipper
from serving.gateway.usage_lines import decode
from serving.metering import Closed, Outcome, Subject, Tokens
from tests.support.until import until_async


def subject(id: str = "req_1") -> Subject:
    return Subject(id, "key_1", "firm_1", "prj_1", "合流", "base", None, True, "eng_1", 1_000)


def closed(id: str, output: int = 2) -> Closed:
    return Closed(subject(id), Tokens(3, 1, output), Outcome.COMPLETED)


def closed_requests(lines: Sequence[bytes]) -> list[Closed]:
    """The records of lines of a usage log."""
    records = [decode(line.rstrip(b"\n")) for line in lines]
    assert all(isinstance(record, Closed) for record in records), "only these go to the ledger"
    return [record for record in records if isinstance(record, Closed)]


class Sink:
    def __init__(self) -> None:
        self.taken: list[Closed] = []
        self.down = False

    async def ingest(self, lines: Sequence[bytes]) -> None:
        if self.down:
            raise Unavailable("the ledger is away")
        self.taken += closed_requests(lines)


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("usage-*.log"))


async def durable(shipper: Shipper, count: int) -> None:
    async def enough() -> bool:
        await asyncio.sleep(0)
        return shipper.backlog >= count

    await until_async(enough, seconds=5, what="the records to be durable")
