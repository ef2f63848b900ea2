"""Usage records into PostgreSQL, thousands in one statement."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quotas.metering import Kin, UsageRecord, counts_of
from quotas.vocabulary import ChargeId

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

# What records have in common comes once, and each says which it has. Which are new is only said where some are not: of
# a batch that all is new of, a count is enough.
_KEEP = text("""
    WITH kept AS (
        INSERT INTO quotas.token_usage (source, id, firm_id, project_id, key_id, model, base_model, input, cached_input,
            output, at, outcome, lease_id, dedicated, charge_id, kind, quantity, ingested_at)
        SELECT k.source, u.id, k.firm_id, k.project_id, k.key_id, k.resource, k.base, u.input, u.cached_input, u.output,
            TIMESTAMPTZ 'epoch' + u.at * INTERVAL '1 microsecond', k.outcome, k.lease_id, k.dedicated, k.charge_id,
            k.kind, u.quantity, CAST(:now AS timestamptz)
        FROM unnest(
            CAST(:id AS text[]), CAST(:at AS bigint[]), CAST(:input AS bigint[]), CAST(:cached_input AS bigint[]),
            CAST(:output AS bigint[]), CAST(:quantity AS bigint[]), CAST(:kin AS integer[])
        ) WITH ORDINALITY AS u (id, at, input, cached_input, output, quantity, kin, place)
        JOIN unnest(
            CAST(:source AS text[]), CAST(:firm_id AS text[]), CAST(:project_id AS text[]), CAST(:key_id AS text[]),
            CAST(:resource AS text[]), CAST(:base AS text[]), CAST(:dedicated AS boolean[]), CAST(:outcome AS text[]),
            CAST(:lease_id AS text[]), CAST(:kind AS text[]), CAST(:charge_id AS text[])
        ) WITH ORDINALITY AS k (source, firm_id, project_id, key_id, resource, base, dedicated, outcome, lease_id, kind,
            charge_id, number) ON k.number = u.kin
        ORDER BY u.place
        ON CONFLICT (source, id) DO NOTHING RETURNING source, id)
    SELECT CASE WHEN (SELECT count(*) FROM kept) < :records
        THEN (SELECT coalesce(jsonb_agg(jsonb_build_array(source, id)), '[]') FROM kept) END AS new""")
_COUNTS = ("input", "cached_input", "output", "quantity")


async def keep(
    tx: AsyncSession,
    records: Sequence[UsageRecord],
    kin: Sequence[Kin],
    charges: Sequence[ChargeId],
    *,
    now: datetime,
) -> list[bool]:
    """Store the records, each with its kin and on its charge; says of each whether it was not there before.

    They come sorted, so two batches never deadlock.
    """
    numbers: dict[tuple[Kin, ChargeId], int] = {}
    number_of = [numbers.setdefault(pair, len(numbers) + 1) for pair in zip(kin, charges, strict=True)]
    columns: dict[str, object] = {
        name: _texts(column)
        for name, column in zip(Kin._fields, zip(*(of for of, _ in numbers), strict=True), strict=True)
        if name != "dedicated"
    }
    columns |= {
        "dedicated": _plain("t" if of.dedicated else "f" for of, _ in numbers),
        "charge_id": _texts([charge for _, charge in numbers]),
        "kin": _plain(map(str, number_of)),
        "id": _texts([record.id for record in records]),
        "at": _plain([str((record.at - EPOCH) // MICROSECOND) for record in records]),
    }
    counts = zip(*map(counts_of, records), strict=True)
    columns |= {name: _plain(map(str, of)) for name, of in zip(_COUNTS, counts, strict=True)}
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
