"""A firm with money, prices and vouchers, made through the same services the routes use."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import SYSTEM
from kit.db import Database
from kit.ids import new_id
from kit.units import MICRO_PER_YUAN, GpuMilli, GpuMs, MicroYuan, Ppm, Tokens
from quotas import cash, holds, programmes, tariffs
from quotas.keys import KeySpec, issue_key
from quotas.pricing import Meter, RateKey
from quotas.vocabulary import (
    ComputeUsage,
    FirmId,
    Hold,
    KeyId,
    LeaseId,
    ModelName,
    PoolName,
    ProjectId,
    QoS,
    Scope,
    TokenUsage,
    centre_of,
)

POOL = PoolName("optics-valley/cpu-slot")
MODEL = ModelName("smollm2-135m-instruct")
PROJECT = ProjectId("prj_of_the_firm")
RATES = {
    RateKey(Meter.GPU_HOUR, POOL, "standard"): 3_600_000,  # one micro-yuan per slot-millisecond
    RateKey(Meter.GPU_HOUR, POOL, "interruptible"): 1_800_000,
    RateKey(Meter.INPUT, MODEL): 1_000_000,  # one micro-yuan per token
    RateKey(Meter.CACHED_INPUT, MODEL): 250_000,
    RateKey(Meter.OUTPUT, MODEL): 2_000_000,
}


def yuan(amount: float) -> MicroYuan:
    """Micro-yuan of an amount written in yuan."""
    return MicroYuan(round(amount * MICRO_PER_YUAN))


async def open_firm(tx: AsyncSession, *, now: datetime, paid_in: int = 0) -> FirmId:
    """An active firm with prepaid money."""
    firm_id = FirmId(new_id("firm"))
    alphabet = "0123456789ABCDEFGHJKLMNPQRTUWXY"
    uscc = "".join(alphabet[ord(letter) % 31] for letter in firm_id[-18:])
    await tx.execute(
        text("""INSERT INTO quotas.firm (id, kind, name, state, uscc, doubts, industry_cluster, district, contact_name,
                contact_email, applied_at, state_since)
            VALUES (:id, 'company', :id, 'active', :uscc, '{}', 'online_games', 'East Lake', 'Li', 'li@example.com',
                :now, :now)"""),
        {"id": firm_id, "uscc": uscc, "now": now},
    )
    if paid_in:
        await cash.record_topup(
            tx, key=new_id("op"), firm_id=firm_id, amount=MicroYuan(paid_in), evidence="bank slip 1", by="test", now=now
        )
    return firm_id


async def open_key(
    tx: AsyncSession, firm_id: FirmId, *, now: datetime, requests: int | None = None, tokens: int | None = None
) -> KeyId:
    """An API key of the firm's first project with these limits per minute."""
    project_id = ProjectId(new_id("prj"))
    await tx.execute(
        text("INSERT INTO quotas.project (id, firm_id, name, created_at) VALUES (:id, :firm, :id, :now)"),
        {"id": project_id, "firm": firm_id, "now": now},
    )
    spec = KeySpec(
        "key", frozenset({Scope.INFERENCE}), project_id, requests_per_minute=requests, tokens_per_minute=tokens
    )
    return KeyId((await issue_key(tx, firm_id, spec, by=SYSTEM, now=now)).key.id)


async def publish_prices(db: Database, *, now: datetime) -> str:
    """The price book of these tests, in force from a month before `now`."""
    async with db.transaction() as tx:
        tariff = await tariffs.publish_tariff(
            tx, name="first", valid_from=now - timedelta(days=30), rates=RATES, by="test", now=now
        )
    return tariff.id


async def grant(
    tx: AsyncSession, firm_id: FirmId, amount: int, *, now: datetime, share_ppm: int = 500_000, **spec: object
) -> str:
    """A voucher of a programme of its own. Returns the voucher's id."""
    values: dict[str, object] = {
        "name": new_id("name"),
        "funder": "the bureau",
        "share_ppm": Ppm(share_ppm),
        "pool": yuan(1000),
        "cap_per_firm_year": yuan(500),
        "valid_from": now - timedelta(days=1),
        "valid_until": now + timedelta(days=400),
        **spec,
    }
    programme = await programmes.create_programme(tx, programmes.ProgrammeSpec(**values), by="test", now=now)  # type: ignore[arg-type]
    voucher = await programmes.grant_voucher(
        tx,
        key="first",
        programme_id=programme.id,
        firm_id=firm_id,
        amount=MicroYuan(amount),
        note="",
        by="test",
        now=now,
    )
    return voucher.terms.id


async def hold(
    tx: AsyncSession, firm_id: FirmId, *, now: datetime, seconds: int = 100, key: str | None = None, **more: object
) -> Hold:
    """Money for one slot for so many seconds; 1,000 seconds cost one yuan."""
    values: dict[str, object] = {"subject": "job_1", "qos": QoS.STANDARD, **more}
    return await holds.hold_compute(
        tx,
        key=key or new_id("key"),
        firm_id=firm_id,
        project_id=PROJECT,
        pool=POOL,
        gpu_milli=GpuMilli(1000),
        seconds_max=seconds,
        now=now,
        **values,  # type: ignore[arg-type]
    )


def used(
    firm_id: FirmId, *, start: datetime, seconds: float, attempt: str = "att_1", subject: str = "job_1", **more: object
) -> ComputeUsage:
    """One slot for so many seconds."""
    values: dict[str, object] = {"qos": QoS.STANDARD, "gpu_ms": GpuMs(int(seconds * 1000)), **more}
    return ComputeUsage(
        subject=subject,
        attempt_id=attempt,
        firm_id=firm_id,
        project_id=PROJECT,
        pool=POOL,
        centre=centre_of(POOL),
        started_at=start,
        ended_at=start + timedelta(seconds=seconds),
        **values,  # type: ignore[arg-type]
    )


def tokens(firm_id: FirmId, number: int, *, at: datetime, lease_id: LeaseId | None = None, **more: Any) -> TokenUsage:
    """One request of 100 tokens in (20 of them cached) and 10 out: 80 + 5 + 20 micro-yuan."""
    values: dict[str, object] = {
        "source": "gateway-1",
        "key_id": KeyId("key_1"),
        "model": MODEL,
        "input": Tokens(100),
        "cached_input": Tokens(20),
        "output": Tokens(10),
        **more,
    }
    return TokenUsage(
        id=f"req_{number}",
        firm_id=firm_id,
        project_id=PROJECT,
        base_model=MODEL,
        at=at,
        outcome="stop",
        lease_id=lease_id,
        **values,  # type: ignore[arg-type]
    )
