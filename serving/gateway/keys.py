"""Keys known to this gateway: found by the hash of what was sent, and confirmed all together about once a second.

A revocation arrives by NOTIFY at once, and by the next round when a notice was lost: under 2 s either way. A round asks
one question about all keys in use; what one allows is read again when somebody says that it changed, and now and then.
While the database is unreachable, keys already known are honoured for a set time.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
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
LATE_SECONDS = 1.8
"""A key not confirmed for this long is confirmed before it is used, unless the database is unreachable."""
IN_USE_SECONDS = 60
"""A key that was not used for longer is confirmed when it is used again."""
READ_SECONDS = 30
"""So often what a key allows is read again though nobody said that it changed."""
READ_AT_ONCE = 500


@dataclass(slots=True)
class _Known:
    grant: KeyGrant
    read: float
    checked: float
    used: float
    changed: float = 0.0
    """When it was last said that it changed."""


class KeyRing:
    """The cache of key grants. Times are the event loop's."""

    def __init__(self, source: Keys, *, refresh_seconds: float, offline_seconds: float) -> None:
        self._source = source
        self._refresh = refresh_seconds
        self._offline = offline_seconds
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._loop = asyncio.get_running_loop()
        self._loading: dict[bytes, asyncio.Task[KeyGrant | None]] = {}
        self._strangers = asyncio.Semaphore(STRANGERS_AT_ONCE)
        self._round: asyncio.Task[None] | None = None
        self._next_round: asyncio.Task[None] | None = None
        self.offline = False

    def cached(self, bearer: bytes) -> KeyGrant | None:
        """The grant of a key confirmed lately; None means ask `load`."""
        known = self._known.get(hashlib.sha256(bearer).digest())
        if known is None:
            return None
        now = known.used = self._loop.time()
        age = now - known.checked
        if age > LATE_SECONDS and not (self.offline and age < self._offline):
            return None
        grant = known.grant
        return None if grant.expires_at is not None and _expired(grant) else grant

    async def load(self, bearer: bytes) -> KeyGrant | None:
        """The grant of a key, from the database when need be; None for one that opens nothing. Raises Unavailable."""
        name = hashlib.sha256(bearer).digest()
        known = self._known.get(name)
        if known is not None:
            known.used = self._loop.time()
            return await self._confirmed(name, known)
        refused_until = self._unknown.get(name, 0.0)
        if refused_until > self._loop.time():
            return None
        task = self._loading.get(name)
        if task is None:
            task = self._loading[name] = self._loop.create_task(self._load(name, bearer))
            task.add_done_callback(lambda _: self._loading.pop(name, None))
        return await asyncio.shield(task)

    async def _confirmed(self, name: bytes, known: _Known) -> KeyGrant | None:
        if _expired(known.grant):
            return None
        try:
            await self._round_from_now()
        except (HeliuError, OSError):
            if self._loop.time() - known.checked >= self._offline:
                raise
            return known.grant
        still = self._known.get(name)
        return None if still is None or _expired(still.grant) else still.grant

    async def _load(self, name: bytes, bearer: bytes) -> KeyGrant | None:
        try:
            async with self._strangers:  # made-up keys take turns, so that they leave the database to others
                began = self._loop.time()
                grant = await self._source.load(bearer.decode("ascii", "replace"))
        except Unavailable:
            self.offline = True
            raise
        self.offline = False
        if grant is None:
            self._unknown[name] = self._loop.time() + UNKNOWN_SECONDS
            if len(self._unknown) > UNKNOWN_MAX:
                self._unknown.popitem(last=False)
            return None
        self._known[name] = _Known(grant, began, began, began)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return grant

    # --- rounds ---------------------------------------------------------------------------------------------------

    async def confirm(self) -> None:
        """For ever: confirm the keys in use, all together."""
        while True:
            began = self._loop.time()
            try:
                await self._round_from_now()
            except (HeliuError, OSError):
                pass  # known keys are honoured for a while
            await asyncio.sleep(max(0.0, began + self._refresh - self._loop.time()))

    async def _round_from_now(self) -> None:
        """A round that begins now or later, shared by whoever waits for one. Raises Unavailable."""
        if self._next_round is None:
            self._next_round = self._loop.create_task(self._take_turn(self._round))
        await asyncio.shield(self._next_round)

    async def _take_turn(self, running: asyncio.Task[None] | None) -> None:
        if running is not None:
            await asyncio.wait([running])
        self._round, self._next_round = self._next_round, None
        try:
            await self._confirm_all()
        except (HeliuError, OSError):
            self.offline = True
            raise
        self.offline = False

    async def _confirm_all(self) -> None:
        began = self._loop.time()
        used = [(name, one) for name, one in self._known.items() if began - one.used < IN_USE_SECONDS]
        known = [one for one in used if not _to_read(one[1], began)]
        if known:
            over = await self._source.over([one.grant.key_id for _, one in known])
            for name, one in known:
                if one.grant.key_id in over:
                    self._known.pop(name, None)
                elif one.changed <= began:
                    one.checked = began
        changed = [one for one in used if _to_read(one[1], began)]
        for start in range(0, len(changed), READ_AT_ONCE):
            await self._read(changed[start : start + READ_AT_ONCE])

    async def _read(self, some: Sequence[tuple[bytes, _Known]]) -> None:
        began = self._loop.time()
        grants = await self._source.reload([one.grant.key_id for _, one in some])
        for name, one in some:
            grant = grants.get(one.grant.key_id)
            if grant is None:
                self._known.pop(name, None)
            elif one.changed <= began:
                one.grant, one.read, one.checked = grant, began, began

    async def listen(self) -> None:
        """Follow changes for ever: what changed is asked again before it is used."""
        while True:
            try:
                async for key_id in self._source.key_changes():
                    self.forget(key_id)
            except Unavailable:
                self.offline = True
                log.warning("the database does not answer; known keys are honoured for a while")
            await asyncio.sleep(0.5)

    def forget(self, key_id: str) -> None:
        """A key changed: the next request with it waits for a round."""
        self._unknown.clear()
        now = self._loop.time()
        for known in self._known.values():
            if key_id in ("*", "", known.grant.key_id):
                known.changed = now
                known.checked = min(known.checked, now - LATE_SECONDS - 0.001)


def _to_read(known: _Known, now: float) -> bool:
    return known.changed >= known.read or now - known.read > READ_SECONDS


def _expired(grant: KeyGrant) -> bool:
    """Its end is known without asking, also while the database is away."""
    return grant.expires_at is not None and grant.expires_at <= utc_now()
