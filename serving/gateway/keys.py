"""Keys known to this gateway: found by the hash of what was sent, checked again within a second and a half.

A revocation arrives by NOTIFY at once, and by the re-check when a notice was lost: under 2 s either way. While the
database is unreachable, keys already known are honoured for a set time.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass

from kit.clock import utc_now
from kit.errors import HeliuError, Unavailable
from quotas.vocabulary import KeyGrant
from serving.gateway.ports import Keys

log = logging.getLogger(__name__)

KNOWN_MAX = 50_000
UNKNOWN_MAX = 10_000
UNKNOWN_SECONDS = 1.0
STRANGERS_AT_ONCE = 4
"""So many keys that are not known are looked up at the same time."""
LATE_SECONDS = 1.4
"""A grant not confirmed for this long is confirmed before it is used, unless the database is unreachable."""


@dataclass(slots=True)
class _Known:
    grant: KeyGrant
    checked: float
    refreshing: bool = False


class KeyRing:
    """The cache of key grants. Times are the event loop's."""

    def __init__(self, source: Keys, *, refresh_seconds: float, offline_seconds: float) -> None:
        self._source = source
        self._refresh = refresh_seconds
        self._offline = offline_seconds
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: dict[bytes, asyncio.Task[KeyGrant | None]] = {}
        self._strangers = asyncio.Semaphore(STRANGERS_AT_ONCE)
        self.offline = False

    def cached(self, bearer: bytes) -> KeyGrant | None:
        """The grant of a key confirmed lately; None means ask `load`."""
        name = hashlib.sha256(bearer).digest()
        known = self._known.get(name)
        if known is None:
            return None
        age = self._loop.time() - known.checked
        if age > self._refresh and not known.refreshing:
            known.refreshing = True
            self._spawn(name, known)
        if age > LATE_SECONDS and not (self.offline and age < self._offline):
            return None
        return None if _expired(known.grant) else known.grant

    async def load(self, bearer: bytes) -> KeyGrant | None:
        """The grant of a key, from the database when need be; None for one that opens nothing. Raises Unavailable."""
        name = hashlib.sha256(bearer).digest()
        refused_until = self._unknown.get(name, 0.0)
        if refused_until > self._loop.time():
            return None
        task = self._loading.get(name)
        if task is None:
            task = self._loading[name] = self._loop.create_task(self._load(name, bearer))
            task.add_done_callback(lambda _: self._loading.pop(name, None))
        try:
            return await asyncio.shield(task)
        except Unavailable:
            known = self._known.get(name)
            if known is not None and self._loop.time() - known.checked < self._offline:
                return None if _expired(known.grant) else known.grant
            raise

    async def _load(self, name: bytes, bearer: bytes) -> KeyGrant | None:
        try:
            # Made-up keys take turns, so that they leave the database to keys that are known.
            async with contextlib.nullcontext() if name in self._known else self._strangers:
                began = self._loop.time()
                grant = await self._source.load(bearer.decode("ascii", "replace"))
        except Unavailable:
            self.offline = True
            raise
        self.offline = False
        if grant is None:
            self._known.pop(name, None)
            self._unknown[name] = self._loop.time() + UNKNOWN_SECONDS
            if len(self._unknown) > UNKNOWN_MAX:
                self._unknown.popitem(last=False)
            return None
        self._known[name] = _Known(grant, began)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return grant

    def _spawn(self, name: bytes, known: _Known) -> None:
        task = self._loop.create_task(self._recheck(name, known))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _recheck(self, name: bytes, known: _Known) -> None:
        began = self._loop.time()
        try:
            grant = await self._source.reload(known.grant)
        except (HeliuError, OSError):
            self.offline = True
            known.refreshing = False
            return
        self.offline = False
        if grant is None:
            self._known.pop(name, None)
        else:
            known.grant, known.checked, known.refreshing = grant, began, False

    async def listen(self) -> None:
        """Follow changes for ever: what changed is forgotten and asked again."""
        while True:
            try:
                async for key_id in self._source.key_changes():
                    self.forget(key_id)
            except Unavailable:
                self.offline = True
                log.warning("the database does not answer; known keys are honoured for a while")
            await asyncio.sleep(0.5)

    def forget(self, key_id: str) -> None:
        """A key changed: the next request with it asks the database."""
        self._unknown.clear()
        for known in self._known.values():
            if key_id in ("*", "", known.grant.key_id):
                known.checked = min(known.checked, self._loop.time() - LATE_SECONDS - 0.001)


def _expired(grant: KeyGrant) -> bool:
    """Its end is known without asking, also while the database is away."""
    return grant.expires_at is not None and grant.expires_at <= utc_now()
