"""Times for which nodes are kept, as decisions see them: maintenance, and reservations of one firm. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from quotas.vocabulary import FirmId, PoolName
from scheduler.vocabulary import NodeId


class WindowScope(StrEnum):
    NODE = "node"
    POOL = "pool"
    CENTRE = "centre"


@dataclass(frozen=True, slots=True)
class Window:
    """The nodes of a scope take only the named firm's work in `[start, end)`; without a firm nobody's."""

    id: str
    scope: WindowScope
    target: str
    firm_id: FirmId | None
    start: datetime
    end: datetime
    reason: str

    def covers(self, node: NodeId, pool: PoolName) -> bool:
        """Whether it keeps this node."""
        match self.scope:
            case WindowScope.NODE:
                return node == self.target
            case WindowScope.POOL:
                return pool == self.target
            case WindowScope.CENTRE:
                return pool.partition("/")[0] == self.target

    def meets(self, start: datetime, end: datetime) -> bool:
        """Whether it shares a moment with `[start, end)`."""
        return self.start < end and start < self.end


def in_the_way(
    windows: Iterable[Window], firm_id: FirmId, start: datetime, end: datetime, *, movable: timedelta | None
) -> list[Window]:
    """The windows that keep a firm's work of `[start, end)` from their nodes.

    Work that keeps what it has done may begin when so much time (`movable`) is left before a window: it is stopped then
    and goes on elsewhere, or later.
    """
    until = end if movable is None else min(end, start + movable)
    return [window for window in windows if window.firm_id != firm_id and window.meets(start, until)]


def told(window: Window) -> str:
    """A window in words, for those whose work it keeps away: which firm it is for, and why, is that firm's business."""
    span = f"from {window.start:%m-%d %H:%M} to {window.end:%m-%d %H:%M} UTC"
    why = f"under maintenance {span} ({window.reason})" if window.firm_id is None else f"kept for another firm {span}"
    return f"{window.scope.value} {window.target} is {why}"
