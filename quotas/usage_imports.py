"""Jobs that ran on a centre's own Slurm, from a file of `sacct -P`: all of it or nothing, each job once."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import insert_many
from kit.errors import Conflict, InvalidInput, Refused
from kit.ids import new_id
from kit.units import MAX_AMOUNT, MicroYuan, Ppm
from quotas import chart
from quotas.adapters import ledger_store
from quotas.collecting import Due, Move, Step, added, collect, residue_moves
from quotas.discounts import discounts_between
from quotas.import_files import ImportTerms, gpu_ms_of, read_jobs
from quotas.periods import billing_periods
from quotas.price_times import keep_prices
from quotas.pricing import Discount, Tariff, priced, share_of, shown_rates
from quotas.programmes import validity_edges
from quotas.sacct import SlurmJob
from quotas.statements import service_period
from quotas.tariffs import payouts, tariffs_between
from quotas.vocabulary import NOTHING, CentreName, ComputeUsage, FirmId, Period, UsageKind, centre_of

CHUNK = 500
PAID_AT_ONCE = 5_000


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

    def plus(self, lines: Sequence["_Line"]) -> "ImportResult":
        """With some more lines."""
        return replace(
            self,
            imported=self.imported + len(lines),
            amount=MicroYuan(self.amount + sum(line.amount for line in lines)),
            voucher=MicroYuan(self.voucher + sum(line.voucher for line in lines)),
            cash=MicroYuan(self.cash + sum(line.cash for line in lines)),
            loss=MicroYuan(self.loss + sum(line.loss for line in lines)),
        )


@dataclass(slots=True)
class _Line:
    """What is kept of a job's line until all of the file is priced."""

    id: str
    pool: str | None
    kind: str = UsageKind.COMPUTE.value
    amount: int = 0
    voucher: int = 0
    cash: int = 0
    loss: int = 0
    vouchers: dict[str, int] = field(default_factory=dict[str, int])
    voucher_bases: dict[str, int] = field(default_factory=dict[str, int])
    explanation: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class _Bill:
    """What one firm owes for the file, and for which attempts."""

    due: Due = field(default_factory=Due)
    lines: list[_Line] = field(default_factory=list[_Line])
    attempts: list[str] = field(default_factory=list[str])


T = TypeVar("T")
Payouts = Callable[[CentreName, datetime], Ppm]


async def import_jobs(
    tx: AsyncSession, path: Path, terms: ImportTerms, skipped: Mapping[str, int], *, now: datetime
) -> ImportResult:
    """Charge every job of a checked file that was not charged before, at the prices of when it ran.

    Lines are written first and money is taken last, firm by firm in the order of their ids: nobody waits for a firm's
    money while its jobs are read. Raises Conflict (`usage_differs`) for a job that was imported with other content,
    Refused (`no_tariff`); the caller then rolls back all of it.
    """
    # Two files of one cluster may name the same jobs: one after the other.
    await tx.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('quotas.import:' || :source, 0))"), {"source": terms.source}
    )
    await keep_prices(tx)
    bills: dict[FirmId, _Bill] = {}
    payout_of, duplicates = await payouts(tx), 0
    for jobs in _chunks(read_jobs(path, terms), CHUNK):
        usages = {usage.attempt_id: usage for usage in (_usage(job, terms) for job in jobs)}
        new = await _new_ones(tx, usages)
        duplicates += len(jobs) - len(new)
        await _write_lines(tx, new, bills, payout_of, now=now)
    result = ImportResult(duplicates=duplicates, skipped=dict(skipped))
    holders = await validity_edges(tx, bills, at=now)
    for firm_id, bill in sorted(bills.items()):
        bill.due.steps.sort(key=lambda step: step.at)
        await collect(
            tx,
            firm_id,
            bill.due,
            scope="import",
            request=bill.attempts,
            lease_ids=set(),
            vouchers=firm_id in holders,
            now=now,
        )
        for lines in _chunks(bill.lines, PAID_AT_ONCE):
            await _pay(tx, lines)
            result = result.plus(lines)
    return result


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
        gpu_ms=gpu_ms_of(job),
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


async def _write_lines(
    tx: AsyncSession, usages: Sequence[ComputeUsage], bills: dict[FirmId, _Bill], payout_of: Payouts, *, now: datetime
) -> None:
    """Write the lines that jobs make, priced and not yet paid, and what firms owe for them on their bills."""
    if not usages:
        return
    rows = await _rows(tx, usages, payout_of, now=now)
    await insert_many(tx, "quotas.charge", rows)
    await insert_many(tx, "quotas.compute_usage", [_usage_row(*pair) for pair in zip(usages, rows, strict=True)])
    moves: dict[FirmId, list[Move]] = {}
    for usage, row in zip(usages, rows, strict=True):
        bill, line = bills.setdefault(usage.firm_id, _Bill()), _Line(row["id"], row["pool"])
        bill.lines.append(line)
        bill.attempts.append(usage.attempt_id)
        bill.due.steps.append(Step(line, row["list_amount"] - row["discount"], usage.started_at))
        moves.setdefault(usage.firm_id, []).extend(_moves(usage, row["payable"], row["residue"]))
    for firm_id, more in moves.items():
        due = bills[firm_id].due
        due.moves = added([*due.moves, *more])


def _usage_row(usage: ComputeUsage, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attempt_id": usage.attempt_id,
        "started_at": usage.started_at,
        "ended_at": usage.ended_at,
        "gpu_ms": usage.gpu_ms,
        "request_hash": _request(usage),
        "charge_id": row["id"],
    }


async def _rows(
    tx: AsyncSession, usages: Sequence[ComputeUsage], payout_of: Payouts, *, now: datetime
) -> list[dict[str, Any]]:
    first, last = min(one.started_at for one in usages), max(one.ended_at for one in usages)
    tariffs = await tariffs_between(tx, first, last)
    contracts = await discounts_between(tx, {one.firm_id for one in usages}, first, last)
    wanted = {(one.firm_id, service_period(one.started_at, one.ended_at)) for one in usages}
    periods = await billing_periods(tx, wanted, now=now)
    return [
        _row(usage, tariffs, contracts.get(usage.firm_id, ()), periods, payout_of(usage.centre, usage.started_at))
        for usage in usages
    ]


def _row(
    usage: ComputeUsage,
    tariffs: Sequence[Tariff],
    discounts: Sequence[Discount],
    periods: Mapping[tuple[FirmId, Period], Period],
    payout: Ppm,
) -> dict[str, Any]:
    try:
        segments, listed, price = priced(usage, tariffs, discounts)
    except Refused as refused:
        raise Refused(f"{usage.subject}: {refused.message}", code=refused.code, hint=refused.hint) from None
    if listed.amount > MAX_AMOUNT:
        raise InvalidInput(
            f"{usage.subject} costs more than one line of the statement can hold. Nothing was imported.",
            code="amount_too_large",
            hint="a line costs at most 2^53 micro-yuan; look at its GPUs and times",
        )
    service = service_period(usage.started_at, usage.ended_at)
    line = {
        "id": new_id("chg"),
        "line_key": f"compute:{usage.attempt_id}",
        "firm_id": usage.firm_id,
        "project_id": usage.project_id,
        "subject": usage.subject,
        "period": periods[usage.firm_id, service],
        "service_period": service,
        "tariff_id": segments[0].tariff_id,
        "pool": usage.pool,
        "centre": usage.centre,
        "qos": usage.qos.value,
        "gpu_ms": usage.gpu_ms,
        "rates": shown_rates(segments, contract=False),
        "contract_rates": shown_rates(segments, contract=True),
        "discount": listed.amount - price.amount,
        "discount_id": next((one.discount_id for one in segments if one.discount_id), None),
        "list_amount": listed.amount,
        "payout_ppm": payout,
        "payable": share_of(listed.amount, payout),
        "residue": price.residue,
        "first_at": usage.started_at,
        "last_at": usage.ended_at,
    }
    return {**_UNPAID, **line}


_UNPAID: Mapping[str, Any] = {
    "kind": UsageKind.COMPUTE.value,
    "input": 0,
    "cached_input": 0,
    "output": 0,
    "quantity": 0,
    "requests": 1,
    "amount": 0,
    "voucher": 0,
    "cash": 0,
    "loss": 0,
    "vouchers": {},
    "voucher_bases": {},
    "explanation": [],
    "note": "imported from Slurm",
}


def _moves(usage: ComputeUsage, payable: int, residue: int) -> list[Move]:
    return [
        (chart.firm_gpu(usage.firm_id, usage.pool), chart.pool_capacity(usage.pool), int(usage.gpu_ms)),
        (chart.CENTRE_COST, chart.centre_payable(usage.centre), payable),
        *residue_moves(residue, UsageKind.COMPUTE),
    ]


_PAID = text("""
    UPDATE quotas.charge c SET amount = l.amount, voucher = l.voucher, cash = l.cash, loss = l.loss,
        vouchers = l.vouchers, voucher_bases = l.voucher_bases, explanation = l.explanation
    FROM jsonb_to_recordset(CAST(:lines AS jsonb)) AS l (id text, amount bigint, voucher bigint, cash bigint,
        loss bigint, vouchers jsonb, voucher_bases jsonb, explanation jsonb)
    WHERE c.id = l.id""")


async def _pay(tx: AsyncSession, lines: Sequence[_Line]) -> None:
    """Write on lines who paid."""
    await tx.execute(_PAID, {"lines": json.dumps([asdict(line) for line in lines], ensure_ascii=False)})


def _chunks(many: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(many)
    while chunk := list(islice(rest, size)):
        yield chunk
