"""Which adapters a replica keeps loaded: the most recently wanted ones of those that may be on it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from serving.vocabulary import AdapterId


@dataclass(frozen=True, slots=True)
class Candidate:
    """An active adapter of the replica's base model. `wanted_at`: last use, else when it was registered."""

    id: AdapterId
    firm_id: str
    wanted_at: datetime


def choose(candidates: Iterable[Candidate], *, room: int, firm_id: str | None) -> list[AdapterId]:
    """At most `room` adapters, last wanted first (LRU); on a dedicated deployment only those of its `firm_id`."""
    allowed = [c for c in candidates if firm_id is None or c.firm_id == firm_id]
    allowed.sort(key=lambda c: c.id)
    allowed.sort(key=lambda c: c.wanted_at, reverse=True)
    return [c.id for c in allowed[: max(room, 0)]]
