"""The firms' leased allowance in this gateway.

One lease per firm, grown when a request needs more, shrunk or given back when idle or when another gateway asks.
"""

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field

from kit.errors import HeliuError
from serving.admission import Hold, Lease, TopUp, hold
from serving.gateway.ports import Treasury
from serving.gateway.shipper import Shipper

log = logging.getLogger(__name__)

IDLE_SECONDS = 30
RECALL_SECONDS_MAX = 2.0
"""How long a request waits for other gateways to return what they do not use before money is refused."""
EXPIRY_MARGIN_MS = 2_000
"""A lease this near its end takes no new hold."""


@dataclass(slots=True)
class _Purse:
    lease: Lease | None = None
    used: float = 0.0
    refused_at: float = 0.0
    refused_amount: int = 0
    topping_up: asyncio.Lock = field(default_factory=asyncio.Lock)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the ledger changes the lease: growing and shrinking at once would lose track of one."""


class Purses:
    """All leases. Nothing is held without one, so no firm spends what it does not have."""

    def __init__(self, treasury: Treasury, shipper: Shipper, *, lease_ms: int, chunk: int) -> None:
        self._treasury = treasury
        self._shipper = shipper
        self._lease_ms = lease_ms
        self._chunk = chunk
        self._purses: dict[str, _Purse] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def hold(self, firm_id: str, amount: int) -> Hold | TopUp:
        """Reserve from what is leased; a TopUp asks for `hold_or_top_up`."""
        purse = self._purses.get(firm_id)
        if purse is None:
            purse = self._purses[firm_id] = _Purse()
        purse.used = time.monotonic()
        return hold(purse.lease, amount, now_ms=_now_ms(), margin_ms=EXPIRY_MARGIN_MS)

    async def hold_or_top_up(self, firm_id: str, amount: int) -> Hold | None:
        """Reserve, leasing more when need be; None when the firm's money does not cover it. Raises Unavailable.

        Who waited while somebody else was refused the same or less is refused too: nothing was free meanwhile.
        """
        came = time.monotonic()
        purse = self._purses[firm_id]
        async with purse.topping_up:
            held = self.hold(firm_id, amount)
            if isinstance(held, Hold):
                return held
            if purse.refused_at > came and amount >= purse.refused_amount:
                return None
            held = await self._top_up(firm_id, purse, amount)
            if held is None:
                purse.refused_at, purse.refused_amount = time.monotonic(), amount
            return held

    async def _top_up(self, firm_id: str, purse: _Purse, amount: int) -> Hold | None:
        deadline = time.monotonic() + RECALL_SECONDS_MAX
        wanted = self._chunk
        while True:
            missing = self.hold(firm_id, amount)
            if isinstance(missing, Hold):
                return missing
            await self._grow(firm_id, purse, least=missing.missing, wanted=max(missing.missing, wanted))
            held = self.hold(firm_id, amount)
            if isinstance(held, Hold):
                return held
            if purse.lease is not None and purse.lease.recalled:
                await self.yield_up(firm_id)  # a recalled lease gets nothing more; what is kept of it does
                continue
            if time.monotonic() >= deadline or not await self._treasury.recall(firm_id):
                # Nobody else has any, or nobody gave any: one last look, then money says no.
                await self._grow(firm_id, purse, least=held.missing, wanted=held.missing)
                held = self.hold(firm_id, amount)
                return held if isinstance(held, Hold) else None
            wanted = 0
            await asyncio.sleep(random.uniform(0.02, 0.12))

    async def _grow(self, firm_id: str, purse: _Purse, *, least: int, wanted: int) -> None:
        async with purse.changing:
            if purse.lease is not None and purse.lease.expires_ms <= _now_ms() + EXPIRY_MARGIN_MS:
                purse.lease = None  # lost; what it still owes the ledger takes from free cash
            purse.lease = await self._treasury.grow(firm_id, purse.lease, least=least, wanted=wanted)

    async def tend(self) -> None:
        """For ever: renew leases in use, give back idle ones."""
        while True:
            await asyncio.sleep(min(1.0, self._lease_ms / 6_000))
            for firm_id, purse in list(self._purses.items()):
                try:
                    await self._tend(firm_id, purse)
                except (HeliuError, OSError) as error:
                    log.warning("an allowance lease could not be tended", extra={"why": str(error)})

    async def _tend(self, firm_id: str, purse: _Purse) -> None:
        lease = purse.lease
        if lease is None:
            if time.monotonic() - purse.used > 10 * IDLE_SECONDS and not purse.topping_up.locked():
                del self._purses[firm_id]
        elif lease.expires_ms <= _now_ms():
            if not lease.held:
                purse.lease = None
        elif time.monotonic() - purse.used > IDLE_SECONDS and not lease.held:
            await self.yield_up(firm_id)
        elif lease.expires_ms - _now_ms() < self._lease_ms * 9 // 10:
            async with purse.changing:
                await self._treasury.renew(lease)
            if lease.recalled:
                await self.yield_up(firm_id)

    async def yield_up(self, firm_id: str) -> None:
        """Another gateway needs what this one does not use: keep what is reserved or owed, return the rest."""
        purse = self._purses.get(firm_id)
        if purse is None or purse.lease is None or purse.lease.expires_ms <= _now_ms():
            return
        # What is owed stands still while the ledger is told what to keep.
        async with self._shipper.paused(), purse.changing:
            lease = purse.lease
            if lease is None:
                return
            free, keep = lease.free, lease.bound
            lease.left -= free  # nobody here may hold it while it is on its way back
            try:
                await self._treasury.shrink(lease, keep=keep)
            except BaseException:
                lease.left += free
                raise
            if keep == 0 and lease is purse.lease:
                purse.lease = None

    async def hear(self) -> None:
        """For ever: act on what other gateways recall."""
        while True:
            try:
                async for firm_id in self._treasury.recalls():
                    task = asyncio.get_running_loop().create_task(self._yield_quietly(firm_id))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            except HeliuError:
                pass  # renewals see what was recalled, only later
            await asyncio.sleep(0.5)

    async def _yield_quietly(self, firm_id: str) -> None:
        try:
            await self.yield_up(firm_id)
        except (HeliuError, OSError) as error:
            log.warning("a recalled lease could not be returned yet", extra={"why": str(error)})

    async def close(self) -> None:
        """Give back all that is not reserved."""
        for firm_id in list(self._purses):
            await self._yield_quietly(firm_id)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
