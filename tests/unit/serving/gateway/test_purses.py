"""Money that the ledger may have given to others is not spent here, and what it never heard of is not lost."""

from pathlib import Path

import pytest

from kit.errors import Unavailable
from serving.admission import Hold, Lease, TopUp
from serving.gateway.purses import Purses
from serving.gateway.shipper import Shipper
from serving.gateway.usage_log import UsageLog
from tests.support.gateways import FakePlane


class Cut(FakePlane):
    """A ledger that does what it is told, and whose answer is lost."""

    async def shrink(self, lease: Lease, *, keep: int, keep_tokens: int) -> None:
        raise Unavailable("the connection broke after COMMIT")


async def test_what_was_offered_back_is_not_used_when_nobody_knows_whether_the_ledger_heard(tmp_path: Path) -> None:
    plane, log = Cut(), UsageLog(tmp_path)
    purses = Purses(plane, Shipper(log, plane, backlog_bytes_max=1 << 30), lease_ms=360_000, chunk=1_000)
    purses.hold("firm_1", 10)
    held = await purses.hold_or_top_up("firm_1", 10)
    assert isinstance(held, Hold)
    with pytest.raises(Unavailable):
        await purses.yield_up("firm_1")
    assert purses.hold("firm_1", 1) == TopUp(1), "another gateway may have all but what is held"
    assert held.lease is not None
    assert held.lease.left == held.lease.held == 10
    assert isinstance(await purses.hold_or_top_up("firm_1", 5), Hold), "more is leased as ever"
    log.close()
