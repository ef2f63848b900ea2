"""Images that requests name by address, fetched for the engine within bounds that one firm cannot use up for others.

All images of a request share one deadline and one number of bytes; a firm fetches a few at a time, all firms together
some more. Each address, and each that it redirects to, is checked (`kit.fetch`).
"""

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kit.errors import HeliuError, TooLarge
from kit.fetch import Fetched, FetchPolicy, fetch
from serving.gateway.media import IMAGE_NAMES, image_type
from serving.gateway.openai_errors import Refusal


@dataclass(frozen=True, slots=True)
class ImageBounds:
    """Of one request its bytes and its seconds; of one firm, and of all, how many are fetched at once."""

    bytes_max: int
    seconds_max: float
    at_once_per_firm: int
    at_once: int


@dataclass(slots=True)
class _Asking:
    """One request's images so far."""

    left: int
    begun: bool = False
    found: dict[str, str] = field(default_factory=dict[str, str])


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class ImageFetcher:
    """Fetches images for the requests of a gateway."""

    def __init__(
        self,
        policy: FetchPolicy,
        bounds: ImageBounds,
        get: Callable[[str, FetchPolicy], Awaitable[Fetched]] = fetch,
    ) -> None:
        self._policy = policy
        self._bounds = bounds
        self._get = get
        self._turns = asyncio.Semaphore(bounds.at_once)
        self._of_firms: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    async def fetch(self, firm_id: str, addresses: tuple[str, ...]) -> dict[str, str] | Refusal:
        """Address → data URL of all of them, or why one of them could not be had in time."""
        asking = _Asking(self._bounds.bytes_max)
        try:
            async with asyncio.timeout(self._bounds.seconds_max):
                refused = await self._bring_all(firm_id, addresses, asking)
        except TimeoutError:
            return self._late(asking)
        return refused or asking.found

    def _late(self, asking: _Asking) -> Refusal:
        seconds = self._bounds.seconds_max
        if not asking.begun:
            why = f"other images were fetched for {seconds:g} s, and this request's could not be; try again"
            return Refusal(503, "overloaded", why, retry_after_seconds=5)
        return _not_fetched(f"they did not all arrive within {seconds:g} s")

    async def _bring_all(self, firm_id: str, addresses: tuple[str, ...], asking: _Asking) -> Refusal | None:
        """All of them beside each other; the first that cannot be had ends the others."""
        refusals: list[Refusal] = []
        try:
            async with asyncio.TaskGroup() as group:
                for address in dict.fromkeys(addresses):
                    group.create_task(self._bring(firm_id, address, asking))
        except* _Refused as several:
            refusals += [one.refusal for one in several.exceptions if isinstance(one, _Refused)]
        return refusals[0] if refusals else None

    async def _bring(self, firm_id: str, address: str, asking: _Asking) -> None:
        async with self._turn(firm_id):
            asking.begun = True
            content = await self._content(address)
        kind = image_type(content)
        if kind is None:
            why = f"what was fetched is no image; an image is one of {IMAGE_NAMES}"
            raise _Refused(Refusal(400, "image_type", why))
        asking.left -= len(content)
        if asking.left < 0:
            why = f"the images of a request are together larger than {self._bounds.bytes_max} bytes"
            raise _Refused(Refusal(400, "image_too_large", why))
        asking.found[address] = f"data:{kind};base64,{base64.b64encode(content).decode()}"

    async def _content(self, address: str) -> bytes:
        try:
            answer = await self._get(address, self._policy)
        except TooLarge as error:
            raise _Refused(Refusal(400, "image_too_large", error.message)) from error
        except HeliuError as error:
            # What a name stands for inside our network is nobody's business.
            private = error.code == "address_private"
            raise _Refused(_not_fetched("it is not on the public internet" if private else error.message)) from error
        if not answer.ok:
            raise _Refused(Refusal(400, "image_not_fetched", f"an image's server answered with status {answer.status}"))
        return answer.body

    @asynccontextmanager
    async def _turn(self, firm_id: str) -> AsyncIterator[None]:
        """One of the firm's turns, and then one of all: who waits for his own holds up nobody else."""
        own = self._of_firms.get(firm_id)
        if own is None:
            own = self._of_firms[firm_id] = asyncio.Semaphore(self._bounds.at_once_per_firm)
        self._users[firm_id] += 1
        try:
            async with own, self._turns:
                yield
        finally:
            self._users[firm_id] -= 1
            if not self._users[firm_id]:
                del self._users[firm_id], self._of_firms[firm_id]


def _not_fetched(why: str) -> Refusal:
    return Refusal(400, "image_not_fetched", f"an image could not be fetched: {why}")
