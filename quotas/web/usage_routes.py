"""Usage in: CloudEvents in batches, and files of Slurm's `sacct -P`."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import InvalidInput, NotFound, TooLarge
from kit.patterns import Pattern
from kit.web import chunks_of
from quotas import audit
from quotas.access import Action, require
from quotas.import_files import ImportTerms, check_file
from quotas.keys import firms_of_keys
from quotas.projects import project_of
from quotas.usage import ingest_usage
from quotas.usage_imports import import_jobs
from quotas.vocabulary import PLATFORM_FIRM, FirmId, KeyId, PoolName, ProjectId, QoS
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.usage_schemas import ImportOut, IngestOut, UsageEvent

router = APIRouter(prefix="/api", tags=["usage"])

EVENTS_MAX = 1000
FILE_BYTES_MAX = 32 << 20
Pair = Annotated[
    str,
    StringConstraints(max_length=300),
    Pattern(r"^[^=]+=[^=]+$", "it is two names with one '=' between", "a=b"),
]
Source = Annotated[
    str,
    Pattern(
        r"^[a-z0-9][a-z0-9.-]{0,60}$",
        "a source is named by 1 to 61 of a-z, 0-9, '.' and '-', with a letter or digit first",
        "east-slurm",
    ),
]


class _Rehearsed(Exception):
    """A dry run is over; what it did is rolled back."""

    def __init__(self, shown: ImportOut) -> None:
        super().__init__()
        self.shown = shown


@router.post("/usage-events")
async def ingest(
    events: Annotated[list[UsageEvent], Field(min_length=1, max_length=EVENTS_MAX)],
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
) -> IngestOut:
    """Take a batch of CloudEvents (1.0, batched JSON): all or none. A source and id seen before change nothing.

    For administrators, and keys of the platform's own firm with the scope `usage:ingest`. One that no tariff prices
    refuses the batch (`no_tariff`) and is named.
    """
    require(principal, Action.USAGE_INGEST, firm_id=None)

    async def take(tx: AsyncSession) -> IngestOut:
        await _check_whose(tx, events)
        result = await ingest_usage(tx, [event.record(now) for event in events], now=now, refuse_unpriced=True)
        return IngestOut(accepted=result.accepted, duplicates=result.duplicates)

    return await db.retrying(take)


async def _check_whose(tx: AsyncSession, events: Sequence[UsageEvent]) -> None:
    """Raises InvalidInput naming an event of a project or a key that its firm does not have."""
    first = {(e.data.firm_id, e.data.project_id): e.id for e in reversed(events)}
    for (firm, project), event in first.items():
        try:
            await project_of(tx, ProjectId(project), FirmId(firm))
        except NotFound:
            raise InvalidInput(
                f"event {event!r}: firm {firm} has no project {project}", hint=f"see: heliu project list --firm {firm}"
            ) from None
    owners = await firms_of_keys(tx, {KeyId(e.data.key_id) for e in events if e.data.key_id})
    for event in events:
        key = event.data.key_id
        if key and owners.get(KeyId(key)) != event.data.firm_id:
            raise InvalidInput(
                f"event {event.id!r}: firm {event.data.firm_id} has no key {key}",
                hint=f"see: heliu key list --firm {event.data.firm_id}",
            )


@router.post("/usage-imports")
async def import_file(
    request: Request,
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
    origin: Origin,
    source: Annotated[Source, Query(description="names the cluster for ever")],
    account: Annotated[list[Pair], Query(description="Slurm account=firm, or account=firm/project")],
    partition: Annotated[list[Pair], Query(description="Slurm partition=pool")],
    qos: QoS = QoS.STANDARD,
    timezone: Annotated[str, Query(max_length=40)] = "Asia/Shanghai",
    dry_run: bool = False,
) -> ImportOut:
    """Charge the jobs of a file of `sacct -P` (the body): all or none, each job of a source once.

    One bad line refuses the file and is named by its number.
    """
    require(principal, Action.USAGE_INGEST, firm_id=None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sacct"
        await _keep(request, path)  # on disk before the transaction begins: nobody waits for a slow sender
        async with db.transaction() as tx:
            accounts = {name: await _whose(tx, value) for name, value in _pairs(account)}
        pools = {name: _pool(value) for name, value in _pairs(partition)}
        terms = ImportTerms(source, accounts, pools, qos, timezone)
        skipped = await asyncio.to_thread(check_file, path, terms, now=now)

        async def charge(tx: AsyncSession) -> ImportOut:
            shown = ImportOut.of(await import_jobs(tx, path, terms, skipped, now=now), dry_run=dry_run)
            if dry_run:
                raise _Rehearsed(shown)
            await audit.record(
                tx, "usage.import", source, by=principal, now=now, origin=origin, after=shown.model_dump(mode="json")
            )
            return shown

        try:
            return await db.retrying(charge)
        except _Rehearsed as rehearsed:
            return rehearsed.shown


async def _keep(request: Request, path: Path) -> None:
    size = 0
    with path.open("wb") as file:
        async for chunk in chunks_of(request):
            size += len(chunk)
            if size > FILE_BYTES_MAX:
                raise TooLarge(f"the file is larger than {FILE_BYTES_MAX >> 20} MiB", hint="send it month by month")
            await asyncio.to_thread(file.write, chunk)


def _pairs(pairs: list[str]) -> list[tuple[str, str]]:
    named = [(pair.split("=", 1)[0], pair.split("=", 1)[1]) for pair in pairs]
    if len(dict(named)) != len(named):
        raise InvalidInput("an account or partition is mapped twice", hint="name each once")
    return named


async def _whose(tx: AsyncSession, value: str) -> tuple[FirmId, ProjectId]:
    firm, _, project = value.partition("/")
    if firm == PLATFORM_FIRM:
        raise InvalidInput("the platform charges itself nothing; map the account to a firm")
    return FirmId(firm), (await project_of(tx, ProjectId(project) if project else None, FirmId(firm))).id


def _pool(value: str) -> PoolName:
    centre, slash, accelerator = value.partition("/")
    if not (centre and slash and accelerator):
        raise InvalidInput(f"{value!r} is no pool; write centre/accelerator")
    return PoolName(value)
