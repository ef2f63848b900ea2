"""This gateway's places: how many requests of a key, a firm, or a firm at a model it may have running at once.

Places are leased from the ledger's database, like money and like minutes, so that any number of gateways run as many
together as the limit says and no more. What a gateway does not use it returns when another asks.
"""

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field

from kit.errors import HeliuError
from quotas.vocabulary import PlaceAsk, PlaceLease
from serving.gateway.ports import PlaceSource
from serving.limits import Meter

log = logging.getLogger(__name__)

SLICES = 8
"""So many parts of a limit are leased at once, or as many as are short."""
IDLE_SECONDS = 30
RECALL_SECONDS_MAX = 0.6
"""How long a request waits for other gateways to return what they do not use."""
EXPIRY_MARGIN_SECONDS = 2
"""Places this near their end take no new request."""


@dataclass(slots=True)
class _Held:
    meter: Meter
    limit: int
    places: int = 0
    until: float = 0.0  # monotonic
    used: float = 0.0
    refused: float = 0.0
    """When it was last found that nobody has any to give."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of the calls to the database: what was given back must not be used as well."""

    @property
    def usable(self) -> int:
        """How many requests may run here now."""
        return self.places if time.monotonic() < self.until - EXPIRY_MARGIN_SECONDS else 0

    @property
    def short(self) -> bool:
        """Whether one more request would be one too many."""
        return self.meter.running >= self.usable


class Places:
    """All places of one gateway."""

    def __init__(self, source: PlaceSource, *, lease_seconds: float) -> None:
        self._source = source
        self._lease_seconds = lease_seconds
        self._held: dict[str, _Held] = {}

    def granted(self, subject: str, limit: int, meter: Meter) -> int:
        """How many requests of the subject may run here without asking."""
        held = self._held.get(subject)
        if held is None or held.meter is not meter:
            held = self._held[subject] = _Held(meter, limit)
        held.limit, held.used = limit, time.monotonic()
        return held.usable

    async def have(self, subject: str, *, came: float) -> bool:
        """Lease a place for one more request, asking the other gateways; whether there is one. Raises Unavailable.

        Who waited while somebody else was refused is refused too: nothing was free meanwhile.
        """
        held = self._held[subject]
        deadline = time.monotonic() + RECALL_SECONDS_MAX
        if held.refused > came:
            return False
        await self._lease(subject, held)
        if not held.short:
            return True
        if await self._source.recall_places(subject):
            while time.monotonic() < deadline:
                lease = await self._lease(subject, held)
                if not held.short:
                    return True
                if lease is None or not lease.asked:
                    break  # everybody answered, and needs what he has
                await asyncio.sleep(random.uniform(0.005, 0.03))
        held.refused = time.monotonic()
        return False

    async def give_back(self, subject: str) -> None:
        """Return what is not used."""
        held = self._held.get(subject)
        if held is None:
            return
        async with held.asking:
            held.places = min(held.places, held.meter.running)  # out of use before it is returned
            keep = PlaceAsk(subject, held.places, held.places)
            await self._source.return_places([keep])

    async def tend(self) -> None:
        """Once: renew what is in use, return what has long been idle, forget what is neither."""
        now = time.monotonic()
        for subject, held in list(self._held.items()):
            idle = not held.meter.running and now - held.used > IDLE_SECONDS
            try:
                if idle and held.places and now < held.until:
                    await self.give_back(subject)
                elif idle and not held.asking.locked():
                    del self._held[subject]
                elif held.places and held.until - now < self._lease_seconds * 2 / 3:
                    await self._lease(subject, held, more=False)
            except (HeliuError, OSError) as error:
                log.warning("places could not be renewed or returned", extra={"why": str(error)})

    async def close(self) -> None:
        """The gateway ends and nothing runs any more: all places are free."""
        if self._held:
            await self._source.forget_places()

    async def _lease(self, subject: str, held: _Held, *, more: bool = True) -> PlaceLease | None:
        async with held.asking:
            running = held.meter.running
            wanted = max(running, held.places)
            if more:
                wanted = min(held.limit, running + -(-held.limit // SLICES))
            until = time.monotonic() + self._lease_seconds
            ask = PlaceAsk(subject, max(wanted, running), running)
            leases = await self._source.lease_places([ask])
            if not leases:  # the limit was taken away, and the key's grant will say so
                held.places, held.until = held.limit, until
                return None
            held.places, held.until = leases[0].places, until
        if leases[0].recalled:
            await self.give_back(subject)
        return leases[0]
