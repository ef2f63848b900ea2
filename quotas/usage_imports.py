"""Jobs that ran on a centre's own Slurm, from a file of `sacct -P`: all of it or nothing, each job once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import Conflict, InvalidInput, Refused
from kit.ids import new_id
from kit.units import MAX_AMOUNT, GpuMs, MicroYuan
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import ChargeRow, ComputeUsageRow
from quotas.collecting import Due, Step, added, collect, residue_moves
from quotas.discounts import discounts_between
from quotas.periods import billing_periods
from quotas.price_times import keep_prices
from quotas.pricing import priced, share_of, shown_rates
from quotas.programmes import validity_edges
from quotas.sacct import Header, Skip, SlurmJob, read_header, read_job, zone_named
from quotas.statements import service_period
from quotas.tariffs import payouts, tariffs_between
from quotas.vocabulary import NOTHING, ComputeUsage, FirmId, PoolName, ProjectId, QoS, UsageKind, centre_of

FAULTS_SHOWN = 20
LINE_MAX = 20_000
CHUNK = 500


@dataclass(frozen=True, slots=True)
class ImportTerms:
    """Whose the jobs are: Slurm account → firm and project, partition → pool. `source` names the cluster for ever."""

    source: str
    accounts: Mapping[str, tuple[FirmId, ProjectId]]
    partitions: Mapping[str, PoolName]
    qos: QoS = QoS.STANDARD
    timezone: str = "Asia/Shanghai"


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What came of a file; `loss` is what neither vouchers nor cash paid."""

    imported: int = 0
    duplicates: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    amount: MicroYuan = NOTHING
    voucher: MicroYuan = NOTHING
    cash: MicroYuan = NOTHING
    loss: MicroYuan = NOTHING

    def plus(self, rows: Sequence[ChargeRow], duplicates: int) -> "ImportResult":
        """With some more lines."""
        return replace(
            self,
            imported=self.imported + len(rows),
            duplicates=self.duplicates + duplicates,
            amount=MicroYuan(self.amount + sum(row.amount for row in rows)),
            voucher=MicroYuan(self.voucher + sum(row.voucher for row in rows)),
            cash=MicroYuan(self.cash + sum(row.cash for row in rows)),
            loss=MicroYuan(self.loss + sum(row.loss for row in rows)),
        )


def check_file(path: Path, terms: ImportTerms, *, now: datetime) -> Mapping[str, int]:
    """Read all of a file; returns how many lines have nothing to charge, by why.

    Raises InvalidInput naming the bad lines by number and reason: then nothing of it has been taken. Blocks.
    """
    faults: list[tuple[int, str]] = []
    skipped: dict[str, int] = {}
    seen: dict[str, SlurmJob] = {}
    for number, job in _read(path, terms, faults):
        if isinstance(job, Skip):
            skipped[job] = skipped.get(job, 0) + 1
        elif job.account not in terms.accounts:
            faults.append((number, f"account {job.account!r} is no firm's; map it: --account {job.account}=firm_…"))
        elif job.partition not in terms.partitions:
            faults.append((number, f"partition {job.partition!r} is no pool; map it: --partition {job.partition}=…"))
        elif job.ended_at > now:
            faults.append((number, f"it ends at {job.ended_at.isoformat()}, which is still to come"))
        elif (took := _gpu_ms(job)) > MAX_AMOUNT:
            faults.append((number, f"job {job.job_id} took {took} GPU-milliseconds, more than the books can hold"))
        elif seen.setdefault(job.job_id, job) != job:
            faults.append((number, f"job {job.job_id} is in the file before, with other content"))
    if faults:
        raise _refusal(faults)
    return skipped


def _refusal(faults: Sequence[tuple[int, str]]) -> InvalidInput:
    number, reason = faults[0]
    more = f"; {len(faults) - 1} more lines are wrong" if len(faults) > 1 else ""
    return InvalidInput(
        f"line {number}: {reason}{more}. Nothing was imported.",
        code="bad_line",
        hint="mend the file and send it again; what was imported before is not charged twice",
        details={"lines": [{"line": line, "reason": why} for line, why in faults[:FAULTS_SHOWN]]},
    )


def _read(path: Path, terms: ImportTerms, faults: list[tuple[int, str]]) -> Iterator[tuple[int, SlurmJob | Skip]]:
    """(line number, what it says) of every good line; the others are added to `faults`."""
    header: Header | None = None
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LINE_MAX):
            number += 1
            try:
                line = raw.decode().rstrip("\r\n")
                if len(raw) == LINE_MAX:
                    faults.append((number, f"it is longer than {LINE_MAX} bytes"))
                    break
                if header is None:
                    header = read_header(line, zone_named(terms.timezone))
                elif line:
                    yield number, read_job(line, header)
            except UnicodeDecodeError:
                faults.append((number, "it is no UTF-8 text"))
            except ValueError as error:
                faults.append((number, str(error)))
    if header is None:
        raise InvalidInput("the file is empty", hint="sacct -P -X writes a header first")


async def import_jobs(
    tx: AsyncSession, path: Path, terms: ImportTerms, skipped: Mapping[str, int], *, now: datetime
) -> ImportResult:
    """Charge every job of a checked file that was not charged before, at the prices of when it ran.

    Raises Conflict (`usage_differs`) for a job that was imported with other content, Refused (`no_tariff`); the caller
    then rolls back all of it.
    """
    result = ImportResult(skipped=dict(skipped))
    chunk: list[SlurmJob] = []
    for _, job in _read(path, terms, []):
        if isinstance(job, SlurmJob):
            chunk.append(job)
        if len(chunk) == CHUNK:
            result, chunk = await _import_chunk(tx, chunk, terms, result, now=now), []
    return await _import_chunk(tx, chunk, terms, result, now=now) if chunk else result


async def _import_chunk(
    tx: AsyncSession, jobs: Sequence[SlurmJob], terms: ImportTerms, result: ImportResult, *, now: datetime
) -> ImportResult:
    usages = {usage.attempt_id: usage for usage in (_usage(job, terms) for job in jobs)}
    new = await _new_ones(tx, usages)
    if not new:
        return result.plus([], len(jobs))
    rows = await _rows(tx, new, now=now)
    firms = sorted({usage.firm_id for usage in new})
    holders = await validity_edges(tx, firms, at=now)
    for firm_id in firms:
        of_firm = [(usage, row) for usage, row in zip(new, rows, strict=True) if usage.firm_id == firm_id]
        due = Due([Step(row, row.list_amount - row.discount, usage.started_at) for usage, row in of_firm])
        due.moves = added(move for usage, row in of_firm for move in _moves(usage, row))
        await collect(
            tx,
            firm_id,
            due,
            scope="import",
            request=[usage.attempt_id for usage, _ in of_firm],
            lease_ids=set(),
            vouchers=firm_id in holders,
            now=now,
        )
    tx.add_all(rows)
    await tx.flush()
    tx.add_all(
        ComputeUsageRow(
            attempt_id=usage.attempt_id,
            started_at=usage.started_at,
            ended_at=usage.ended_at,
            gpu_ms=usage.gpu_ms,
            request_hash=_request(usage),
            charge_id=row.id,
        )
        for usage, row in zip(new, rows, strict=True)
    )
    await tx.flush()
    return result.plus(rows, len(jobs) - len(new))


def _gpu_ms(job: SlurmJob) -> GpuMs:
    return GpuMs(job.gpus * ((job.ended_at - job.started_at) // timedelta(milliseconds=1)))


def _usage(job: SlurmJob, terms: ImportTerms) -> ComputeUsage:
    firm_id, project_id = terms.accounts[job.account]
    pool = terms.partitions[job.partition]
    return ComputeUsage(
        subject=f"slurm {terms.source} {job.job_id}",
        attempt_id=f"slurm:{terms.source}:{job.job_id}",
        firm_id=firm_id,
        project_id=project_id,
        pool=pool,
        centre=centre_of(pool),
        qos=terms.qos,
        gpu_ms=_gpu_ms(job),
        started_at=job.started_at,
        ended_at=job.ended_at,
    )


def _request(usage: ComputeUsage) -> bytes:
    return ledger_store.request_hash(
        [usage.firm_id, usage.pool, usage.qos, usage.gpu_ms, usage.started_at.timestamp(), usage.ended_at.timestamp()]
    )


async def _new_ones(tx: AsyncSession, usages: Mapping[str, ComputeUsage]) -> list[ComputeUsage]:
    """Those that were not charged before, in the order of time. Raises Conflict where one was, differently."""
    rows = await tx.execute(
        text("SELECT attempt_id, request_hash FROM quotas.compute_usage WHERE attempt_id = ANY(CAST(:ids AS text[]))"),
        {"ids": sorted(usages)},
    )
    known = {row.attempt_id: bytes(row.request_hash) for row in rows}
    for attempt_id, before in known.items():
        if before != _request(usages[attempt_id]):
            raise Conflict(
                f"{usages[attempt_id].subject} was imported before, with other content. Nothing was imported.",
                code="usage_differs",
                hint="look at its charge; a job that ran again is imported under another source",
            )
    return sorted(
        (usage for name, usage in usages.items() if name not in known), key=lambda one: (one.started_at, one.attempt_id)
    )


async def _rows(tx: AsyncSession, usages: Sequence[ComputeUsage], *, now: datetime) -> list[ChargeRow]:
    """The lines they make, priced and not yet paid."""
    first, last = min(one.started_at for one in usages), max(one.ended_at for one in usages)
    await keep_prices(tx)
    tariffs = await tariffs_between(tx, first, last)
    contracts = await discounts_between(tx, {one.firm_id for one in usages}, first, last)
    services = {one.attempt_id: service_period(one.started_at, one.ended_at) for one in usages}
    periods = await billing_periods(tx, {(one.firm_id, services[one.attempt_id]) for one in usages}, now=now)
    payout_of = await payouts(tx)
    rows: list[ChargeRow] = []
    for usage in usages:
        try:
            segments, listed, price = priced(usage, tariffs, contracts.get(usage.firm_id, ()))
        except Refused as refused:
            raise Refused(f"{usage.subject}: {refused.message}", code=refused.code, hint=refused.hint) from None
        if listed.amount > MAX_AMOUNT:
            raise InvalidInput(
                f"{usage.subject} costs more than one line of the statement can hold. Nothing was imported.",
                code="amount_too_large",
                hint="a line costs at most 2^53 micro-yuan; look at its GPUs and times",
            )
        service = services[usage.attempt_id]
        payout = payout_of(usage.centre, usage.started_at)
        row = ChargeRow(
            id=new_id("chg"),
            line_key=f"compute:{usage.attempt_id}",
            kind=UsageKind.COMPUTE.value,
            firm_id=usage.firm_id,
            project_id=usage.project_id,
            subject=usage.subject,
            period=periods[usage.firm_id, service],
            service_period=service,
            tariff_id=segments[0].tariff_id,
            pool=usage.pool,
            centre=usage.centre,
            qos=usage.qos.value,
            gpu_ms=usage.gpu_ms,
            requests=1,
            rates=shown_rates(segments, contract=False),
            contract_rates=shown_rates(segments, contract=True),
            discount=listed.amount - price.amount,
            discount_id=next((one.discount_id for one in segments if one.discount_id), None),
            amount=0,
            voucher=0,
            cash=0,
            vouchers={},
            voucher_bases={},
            loss=0,
            list_amount=listed.amount,
            payout_ppm=payout,
            payable=share_of(listed.amount, payout),
            residue=price.residue,
            first_at=usage.started_at,
            last_at=usage.ended_at,
            explanation=[],
            note="imported from Slurm",
        )
        rows.append(row)
    return rows


def _moves(usage: ComputeUsage, row: ChargeRow) -> list[tuple[chart.AccountSpec, chart.AccountSpec, int]]:
    return [
        (chart.firm_gpu(usage.firm_id, usage.pool), chart.pool_capacity(usage.pool), int(usage.gpu_ms)),
        (chart.CENTRE_COST, chart.centre_payable(usage.centre), row.payable),
        *residue_moves(row.residue, UsageKind.COMPUTE),
    ]
