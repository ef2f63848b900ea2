"""What nodes have that lets work begin sooner: told by runners, kept by node, and what of it a job can use."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from scheduler.adapters.tables import InputRow
from scheduler.node.protocol import Inventory, held_as

FILES_AT_MOST = 32
"""Of a job's files the largest: to weigh more of them would tell little more."""


def useful_files(firm_id: str, files: Iterable[InputRow]) -> dict[str, int]:
    """The largest of these files, by the names nodes keep them under, with their sizes."""
    largest = sorted(files, key=lambda file: (-file.size_bytes, file.sha256))[:FILES_AT_MOST]
    return {held_as(firm_id, file.sha256): file.size_bytes for file in largest}


def with_checkpoint(
    files: Mapping[str, int], firm_id: str, *, before: str | None, sha256: str, size_bytes: int
) -> dict[str, int]:
    """The same with a new checkpoint in place of the one before."""
    rest = {name: size for name, size in files.items() if before is None or name != held_as(firm_id, before)}
    return rest | {held_as(firm_id, sha256): size_bytes}


async def record(tx: AsyncSession, attempt_id: str, told: Sequence[Inventory], *, now: datetime) -> None:
    """Keep what an attempt's workers said of their nodes. A node has what the last of them said."""
    if not told:
        return
    await tx.execute(
        text("""
            INSERT INTO scheduler.node_inventory AS known (node_id, files, models, warm, told_at)
            SELECT DISTINCT ON (p.node_id) p.node_id, i.files, i.models, i.warm, :now
            FROM jsonb_to_recordset(CAST(:told AS jsonb))
                AS i (worker integer, files text[], models text[], warm text[])
            JOIN scheduler.placement p ON p.attempt_id = :attempt AND p.worker = i.worker
            ORDER BY p.node_id, i.worker
            ON CONFLICT (node_id) DO UPDATE SET files = excluded.files, models = excluded.models,
                warm = excluded.warm, told_at = excluded.told_at
            WHERE (known.files, known.models, known.warm) IS DISTINCT FROM
                (excluded.files, excluded.models, excluded.warm)"""),
        {"attempt": attempt_id, "told": json.dumps([one.model_dump() for one in told]), "now": now},
    )
