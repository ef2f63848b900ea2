"""Who comes first: priority, then age. Ids break ties, so the order never depends on the order of rows."""

from collections.abc import Iterable
from datetime import datetime

from scheduler.snapshot import Waiting


def rank(workload: Waiting) -> tuple[int, datetime, str]:
    """Sort key: what ranks lower is considered earlier."""
    return -workload.priority, workload.submitted_at, workload.id


def in_order(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Waiting workloads, the one to be considered first in front."""
    return sorted(waiting, key=rank)
