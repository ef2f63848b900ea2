"""A job's log over all its attempts, read by cursor."""

import re
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import InvalidInput
from scheduler.adapters import store
from scheduler.adapters.tables import LogLineRow

AFTER_START = "0-0"
_CURSOR = re.compile(r"^(\d{1,9})-(\d{1,9})$")


async def log_page(tx: AsyncSession, workload_id: str, *, after: str, limit: int) -> Sequence[LogLineRow]:
    """Lines after the cursor `<fence>-<seq>`, in order. Raises InvalidInput for a cursor that is none."""
    match = _CURSOR.match(after)
    if match is None:
        raise InvalidInput(f"{after!r} is not a cursor", hint="pass one that an earlier answer gave, or none")
    return await store.log_lines(tx, workload_id, after=(int(match[1]), int(match[2])), limit=limit)


def follow_position(line: LogLineRow) -> str:
    """The cursor that continues after this line."""
    return f"{line.fence}-{line.seq}"
