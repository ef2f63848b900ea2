"""The firms' leased allowance in this gateway.

One lease per payer: a firm; or apart from it a project, or a key's line in it, where a budget or a month's limit on
tokens is over just these. Grown when a request needs more, shrunk or given back when idle or when another asks.
"""

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field

from kit.errors import HeliuError, Refused
from serving.admission import Hold, Lease, TopUp, hold
from serving.gateway.ports import Treasury
from serving.gateway.shipper import Shipper

log = logging.getLogger(__name__)

IDLE_SECONDS = 30
RECALL_SECONDS_MAX = 2.0
"""How long a request waits for other gateways to return what they do not use before money is refused."""
TOKENS_CHUNK = 200_000
"""How many tokens of a month's limit are leased at once, where there are that many."""
EXPIRY_MARGIN_MS = 2_000
"""A lease this near its end takes no new hold."""


@dataclass(slots=True)
class _Purse:
    lease: Lease | None = None
    used: float = 0.0
    refused_at: float = 0.0
    refused: TopUp = field(default_factory=lambda: TopUp(0))
    """What was missing when a request for `refused_amount` and `refused_tokens` was refused."""
    refused_amount: int = 0
    refused_tokens: int = 0
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

    def hold(self, payer: str, amount: int, tokens: int = 0, *, now_ms: int | None = None) -> Hold | TopUp:
        """Reserve from what is leased; a TopUp asks for `hold_or_top_up`."""
        purse = self._purses.get(payer)
        if purse is None:
            purse = self._purses[payer] = _Purse()
        purse.used = time.monotonic()
        now_ms = _now_ms() if now_ms is None else now_ms
        return hold(purse.lease, amount, tokens=tokens, now_ms=now_ms, margin_ms=EXPIRY_MARGIN_MS)

    async def hold_or_top_up(self, payer: str, amount: int, tokens: int = 0) -> Hold | TopUp:
        """Reserve, leasing more when need be; a TopUp says what nobody has to give. Raises Unavailable.

        Who waited while somebody else was refused the same or less is refused too: nothing was free meanwhile.
        """
        came = time.monotonic()
        purse = self._purses[payer]
        async with purse.topping_up:
            held = self.hold(payer, amount, tokens)
            if isinstance(held, Hold):
                return held
            if purse.refused_at > came and amount >= purse.refused_amount and tokens >= purse.refused_tokens:
                return purse.refused
            held = await self._top_up(payer, purse, amount, tokens)
            if isinstance(held, TopUp):
                purse.refused_at, purse.refused = time.monotonic(), held
                purse.refused_amount, purse.refused_tokens = amount, tokens
            return held

    async def rule_against(self, payer: str, missing: TopUp) -> Refused | None:
        """The budget or month's limit that a refusal is due to, if it is not the balance. Raises Unavailable."""
        return await self._treasury.rule_against(payer, missing)

    async def _top_up(self, payer: str, purse: _Purse, amount: int, tokens: int) -> Hold | TopUp:
        deadline = time.monotonic() + RECALL_SECONDS_MAX
        wanted, more_tokens = self._chunk, TOKENS_CHUNK
        while True:
            missing = self.hold(payer, amount, tokens)
            if isinstance(missing, Hold):
                return missing
            await self._grow(payer, purse, missing, max(missing.missing, wanted), max(missing.tokens, more_tokens))
            held = self.hold(payer, amount, tokens)
            if isinstance(held, Hold):
                return held
            if purse.lease is not None and purse.lease.recalled:
                await self.yield_up(payer)  # a recalled lease gets nothing more; what is kept of it does
                continue
            if time.monotonic() >= deadline or not await self._recall(payer):
                # Nobody else has any, or nobody gave any: one last look, then money says no.
                await self._grow(payer, purse, held, held.missing, held.tokens)
                return self.hold(payer, amount, tokens)
            wanted = more_tokens = 0
            await asyncio.sleep(random.uniform(0.02, 0.12))

    async def _recall(self, payer: str) -> bool:
        """Have what others do not use returned, here and elsewhere; whether anybody may have some."""
        siblings = [name for name in self._of_firm(_firm(payer)) if name != payer and self._may_return(name)]
        for name in siblings:
            await self.yield_up(name)
        return await self._treasury.recall(_firm(payer)) or bool(siblings)

    def _may_return(self, payer: str) -> bool:
        lease = self._purses[payer].lease
        return lease is not None and bool(lease.free or lease.tokens_free)

    def _of_firm(self, firm_id: str) -> list[str]:
        return [payer for payer in self._purses if _firm(payer) == firm_id]

    async def _grow(self, payer: str, purse: _Purse, least: TopUp, wanted: int, more_tokens: int) -> None:
        async with purse.changing:
            if purse.lease is not None and purse.lease.expires_ms <= _now_ms() + EXPIRY_MARGIN_MS:
                purse.lease = None  # lost; what it still owes the ledger takes from free cash
            purse.lease = await self._treasury.grow(
                payer, purse.lease, least=least, wanted=wanted, tokens_wanted=more_tokens if least.tokens else 0
            )

    async def tend(self) -> None:
        """For ever: renew leases in use, give back idle ones."""
        while True:
            await asyncio.sleep(min(1.0, self._lease_ms / 6_000))
            for payer, purse in list(self._purses.items()):
                try:
                    await self._tend(payer, purse)
                except (HeliuError, OSError) as error:
                    log.warning("an allowance lease could not be tended", extra={"why": str(error)})

    async def _tend(self, payer: str, purse: _Purse) -> None:
        lease = purse.lease
        if lease is None:
            if time.monotonic() - purse.used > 10 * IDLE_SECONDS and not purse.topping_up.locked():
                del self._purses[payer]
        elif lease.expires_ms <= _now_ms():
            if not lease.in_use:
                purse.lease = None
        elif time.monotonic() - purse.used > IDLE_SECONDS and not lease.in_use:
            await self.yield_up(payer)
        elif lease.expires_ms - _now_ms() < self._lease_ms * 9 // 10:
            async with purse.changing:
                await self._treasury.renew(lease)
            if lease.recalled:
                await self.yield_up(payer)

    async def yield_up(self, payer: str) -> None:
        """Somebody else needs what this one does not use: keep what is reserved or owed, return the rest.

        Nobody here holds any of the rest from this moment on, however long the usage takes to be shipped.
        """
        purse = self._purses.get(payer)
        if purse is None or purse.lease is None or purse.lease.expires_ms <= _now_ms():
            return
        lease = purse.lease
        money, tokens = lease.set_aside()
        told = False
        try:
            # What is owed stands still while the ledger is told what to keep.
            async with self._shipper.paused(), purse.changing:
                if lease is not purse.lease:
                    return  # it was lost meanwhile
                more = lease.set_aside()
                money, tokens = money + more[0], tokens + more[1]
                told = True
                await self._treasury.shrink(lease, keep=lease.bound, keep_tokens=lease.tokens_bound)
                if not (lease.left or lease.owed or lease.tokens_left or lease.tokens_owed):
                    purse.lease = None
        except BaseException:
            # Once the ledger was told nobody knows whether it heard; what it may have given to others stays aside.
            if not told:
                lease.left += money
                lease.tokens_left += tokens
            raise

    async def hear(self) -> None:
        """For ever: act on what other gateways recall."""
        while True:
            try:
                async for firm_id in self._treasury.recalls():
                    for payer in self._of_firm(firm_id):
                        task = asyncio.get_running_loop().create_task(self._yield_quietly(payer))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
            except HeliuError:
                pass  # renewals see what was recalled, only later
            await asyncio.sleep(0.5)

    async def _yield_quietly(self, payer: str) -> None:
        try:
            await self.yield_up(payer)
        except (HeliuError, OSError) as error:
            log.warning("a recalled lease could not be returned yet", extra={"why": str(error)})

    async def close(self) -> None:
        """Give back all that is not reserved."""
        for payer in list(self._purses):
            await self._yield_quietly(payer)


def _firm(payer: str) -> str:
    return payer.partition(" ")[0]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
