"""A hold before it is written: what is asked for, what it may cost, and its row. Nothing here asks the database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kit.errors import InvalidInput
from kit.ids import new_id
from kit.units import MAX_AMOUNT, GpuMilli, MicroYuan, gpu_ms
from quotas.adapters import ledger_store
from quotas.pricing import Discount, Tariff, price_gpu, rate_range, tariff_at
from quotas.vocabulary import FirmId, HoldState, KeyId, PoolName, ProjectId, QoS, TariffId
from quotas.vouchers import Allocation


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """Whose work is to be paid, what it may use at most, and the key under which it is asked for once."""

    key: str
    firm_id: FirmId
    project_id: ProjectId
    subject: str
    pool: PoolName
    qos: QoS
    gpu_milli: GpuMilli
    seconds_max: int
    cap_micro_yuan: MicroYuan | None = None
    key_id: KeyId | None = None

    @property
    def hash(self) -> bytes:
        """The same for the same request: a key that comes again with another is refused."""
        asked = [self.firm_id, self.project_id, self.subject, self.pool, self.qos, self.gpu_milli, self.seconds_max]
        return ledger_store.request_hash([*asked, self.cap_micro_yuan, self.key_id])


@dataclass(frozen=True, slots=True)
class HoldPrice:
    """The least and the most that GPU time may cost, and the tariff at its start."""

    tariff_id: TariffId
    least: MicroYuan
    most: MicroYuan

    def capped(self, cap: MicroYuan | None) -> MicroYuan:
        """What is to be held: the most, or the cap that was agreed."""
        return MicroYuan(self.most if cap is None else min(self.most, cap))


def price_between(
    tariffs: Sequence[Tariff],
    discounts: Sequence[Discount],
    pool: PoolName,
    qos: QoS,
    milli: int,
    seconds_min: int,
    seconds_max: int,
    *,
    at: datetime,
) -> HoldPrice:
    """What GPU time from `at` may cost. Raises Refused (`no_tariff`), InvalidInput for what no ledger holds."""
    if not (milli > 0 and 0 <= seconds_min <= seconds_max and seconds_max > 0):
        raise InvalidInput("GPU time is priced for at least one thousandth of a GPU and at least one second")
    end = at + timedelta(seconds=seconds_max)
    low, high = rate_range(tariffs, pool=pool, qos=qos, start=at, end=end, discounts=discounts)
    tariff = tariff_at(tariffs, at)
    assert tariff is not None, "rate_range found a price at the start"
    least = price_gpu([(gpu_ms(milli, seconds_min * 1000), low)]).amount
    most = price_gpu([(gpu_ms(milli, seconds_max * 1000), high)]).amount
    if most > MAX_AMOUNT:
        raise InvalidInput("that much GPU time costs more than the ledger can hold in one piece; ask for less")
    return HoldPrice(tariff.id, least, most)


def hold_values(
    asked: HoldRequest,
    tariff_id: TariffId,
    allocation: Allocation,
    cash_pending: int | None,
    part_pendings: Sequence[int],
    *,
    expires_at: datetime,
    now: datetime,
) -> dict[str, Any]:
    """An open hold as its row keeps it, with the pending transfers of its cash and of each voucher's part."""
    return {
        "id": new_id("hold"),
        "firm_id": asked.firm_id,
        "project_id": asked.project_id,
        "subject": asked.subject,
        "pool": asked.pool,
        "qos": asked.qos.value,
        "gpu_milli": asked.gpu_milli,
        "seconds_max": asked.seconds_max,
        "tariff_id": tariff_id,
        "amount": allocation.cash + sum(part.amount for part in allocation.parts),
        "cash": allocation.cash,
        "cash_pending_id": cash_pending,
        "parts": _written(allocation, part_pendings),
        "explanation": list(allocation.explanation),
        "state": HoldState.OPEN.value,
        "created_at": now,
        "expires_at": expires_at,
        "request_key": asked.key,
        "request_hash": asked.hash,
        "key_id": asked.key_id,
    }


def _written(allocation: Allocation, pending_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The vouchers' parts as the hold's row keeps them, each with its pending transfer."""
    return [
        {
            "voucher_id": part.voucher_id,
            "base": part.base,
            "share_ppm": part.share_ppm,
            "amount": part.amount,
            "pending_id": number,
        }
        for part, number in zip(allocation.parts, pending_ids, strict=True)
    ]
