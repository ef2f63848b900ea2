"""Usage records into PostgreSQL, thousands in one statement."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quotas.metering import LineKey, UsageRecord, counts_of
from quotas.vocabulary import ChargeId

# Which records are new is only said where some are not: of a batch that all is new of, a count is enough.
_KEEP = text("""
    WITH kept AS (
        INSERT INTO quotas.token_usage (source, id, firm_id, project_id, key_id, model, base_model, input, cached_input,
            output, at, outcome, lease_id, dedicated, charge_id, kind, quantity, ingested_at)
        SELECT u.*, CAST(:now AS timestamptz) FROM unnest(
            CAST(:source AS text[]), CAST(:id AS text[]), CAST(:firm_id AS text[]), CAST(:project_id AS text[]),
            CAST(:key_id AS text[]), CAST(:model AS text[]), CAST(:base_model AS text[]), CAST(:input AS bigint[]),
            CAST(:cached_input AS bigint[]), CAST(:output AS bigint[]), CAST(:at AS timestamptz[]),
            CAST(:outcome AS text[]), CAST(:lease_id AS text[]), CAST(:dedicated AS boolean[]),
            CAST(:charge_id AS text[]), CAST(:kind AS text[]), CAST(:quantity AS bigint[])) AS u
        ON CONFLICT (source, id) DO NOTHING RETURNING source, id)
    SELECT CASE WHEN (SELECT count(*) FROM kept) < :records
        THEN (SELECT coalesce(jsonb_agg(jsonb_build_array(source, id)), '[]') FROM kept) END AS new""")
_COUNTS = ("input", "cached_input", "output", "quantity")
_WORDS = ("source", "id", "firm_id", "project_id", "key_id", "outcome", "lease_id")


async def keep(
    tx: AsyncSession,
    records: Sequence[UsageRecord],
    lines: Sequence[LineKey],
    charges: Sequence[ChargeId],
    *,
    now: datetime,
) -> list[bool]:
    """Store the records, each on its line and charge; says of each whether it was not there before.

    They come sorted, so two batches never deadlock.
    """
    columns: dict[str, object] = {name: _texts([getattr(record, name) for record in records]) for name in _WORDS}
    columns |= {"model": _texts([line.model for line in lines]), "base_model": _texts([of.base_model for of in lines])}
    columns |= {"kind": _texts([line.kind.value for line in lines]), "charge_id": _texts(charges)}
    counts = zip(*map(counts_of, records), strict=True)
    columns |= {name: _plain(map(str, of)) for name, of in zip(_COUNTS, counts, strict=True)}
    columns |= {
        "at": _plain([record.at.isoformat() for record in records]),
        "dedicated": _plain(["t" if record.dedicated else "f" for record in records]),
    }
    found = (await tx.execute(_KEEP, columns | {"records": len(records), "now": now})).scalar_one()
    if found is None:
        return [True] * len(records)
    new = {(source, id) for source, id in found}
    return [(record.source, record.id) in new for record in records]


# PostgreSQL's array literals, built as whole strings: the driver's own way looks at every element several times.


def _texts(values: Sequence[str | None]) -> str:
    if None in values:
        return _plain(["NULL" if value is None else _quoted(value) for value in values])
    joined = '","'.join(values)  # pyright: ignore[reportArgumentType,reportCallIssue]
    if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
        return _plain([_quoted(value or "") for value in values])
    return f'{{"{joined}"}}'


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _plain(values: Iterable[str]) -> str:
    return "{" + ",".join(values) + "}"
