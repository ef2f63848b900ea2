"""What the gateway needs of the control plane. `control_plane.py` answers from PostgreSQL."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Protocol

from kit.errors import Refused
from quotas.vocabulary import KeyGrant, KeyId, PlaceAsk, PlaceLease, RateAsk, RateLease
from serving.admission import Lease, Rate, TopUp
from serving.vocabulary import RouteTable


class Keys(Protocol):
    async def load(self, bearer: str) -> KeyGrant | None:
        """What this key allows; None for a key that opens nothing (unknown, expired, revoked, firm not active)."""
        ...

    async def reload(self, key_ids: Sequence[KeyId]) -> dict[KeyId, KeyGrant]:
        """What these keys allow now; those that open nothing any more are left out. Raises Unavailable."""
        ...

    async def over(self, key_ids: Sequence[KeyId]) -> set[KeyId]:
        """Those that open nothing any more. Raises Unavailable."""
        ...

    def key_changes(self) -> AsyncIterator[str]:
        """Ids of keys that changed ("*": any), after a first "*" once it listens. Raises Unavailable."""
        ...


class Routes(Protocol):
    async def table(self) -> tuple[RouteTable, dict[str, Rate]]:
        """What can be routed to now, and the token rate of each base model that has one."""
        ...

    def route_changes(self) -> AsyncIterator[str]:
        """Something is said whenever the table may have changed, and once when it listens. Raises Unavailable."""
        ...

    async def wanted(self, adapters: dict[str, datetime]) -> None:
        """Adapters that were asked for, and when: they are loaded, and those wanted last stay loaded."""
        ...


class Treasury(Protocol):
    """Slices of the firms' money, one lease per payer and gateway. Amounts in micro-yuan.

    A payer is a firm; or a firm, a project and perhaps a key's line, where a budget or limit is over just these.
    """

    async def grow(
        self, payer: str, lease: Lease | None, *, least: TopUp, wanted: int, tokens_wanted: int
    ) -> Lease | None:
        """The lease (a new one for None) with up to `wanted` more; the same when less than `least` is free.

        `tokens_wanted` is 0 where no month's limit counts tokens. Sets `recalled`: a recalled lease does not grow, it
        has to be shrunk first.
        """
        ...

    async def renew(self, lease: Lease) -> None:
        """Extend it: sets `expires_ms` and `recalled`."""
        ...

    async def shrink(self, lease: Lease, *, keep: int, keep_tokens: int) -> None:
        """Return all of it but what is kept (when that is nothing, the lease is over). It may change its id."""
        ...

    async def rule_against(self, payer: str, missing: TopUp) -> Refused | None:
        """The budget or month's limit that leaves less than what is missing; None when it is the balance that does."""
        ...

    async def recall(self, firm_id: str) -> bool:
        """Ask other gateways for what they do not use; whether any has a lease of this firm."""
        ...

    def recalls(self) -> AsyncIterator[str]:
        """Firms of which another gateway asks for unused leases. Raises Unavailable."""
        ...


class Rates(Protocol):
    """Slices of rate windows; a window is a subject's minute of UTC (minutes since 1970)."""

    async def lease_windows(self, minute: int, asks: Sequence[RateAsk]) -> list[RateLease]:
        """Have that much of each window in all, or what there is; asking again changes nothing. Raises Unavailable."""
        ...

    async def return_windows(self, minute: int, keeps: Sequence[RateAsk]) -> list[RateLease]:
        """Keep that much of each, give back the rest. Raises Unavailable."""
        ...

    async def recall_window(self, subject: str, minute: int) -> bool:
        """Ask other gateways for what they do not use of it; whether any has some."""
        ...

    def limit_recalls(self) -> AsyncIterator[tuple[str, int | None]]:
        """(subject, minute) that another gateway asks for; no minute: its places. Raises Unavailable."""
        ...


class PlaceSource(Protocol):
    """Places of subjects: how many requests run at once. A lease ends when it is not renewed in time."""

    async def lease_places(self, asks: Sequence[PlaceAsk]) -> list[PlaceLease]:
        """Have that many in all, or what there is, for another lease's time. Raises Unavailable."""
        ...

    async def return_places(self, keeps: Sequence[PlaceAsk]) -> list[PlaceLease]:
        """Keep those that are used, give back the rest. Raises Unavailable."""
        ...

    async def recall_places(self, subject: str) -> bool:
        """Ask other gateways for those they do not use; whether any has some."""
        ...

    async def forget_places(self) -> None:
        """Nothing of this gateway runs: all its places are free."""
        ...


UNFORESEEN = "unforeseen"
"""The code of an InvalidInput that may be the ledger's fault as well as the records'."""


class Ledger(Protocol):
    async def ingest(self, lines: Sequence[bytes]) -> None:
        """Charge the closed requests of these lines of the usage log, each once however often it comes; or none.

        Raises InvalidInput when it will never take one of them, and Unavailable or OSError when it is down.
        """
        ...


class Spending(Protocol):
    async def spend(self, grant: KeyGrant, now: datetime) -> dict[str, object]:
        """A key's own usage and spend of this month."""
        ...
