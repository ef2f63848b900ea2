"""The gateway's ports answered from PostgreSQL, through `quotas.api` and `serving.api`."""

import logging
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit.clock import utc_now
from kit.db import Database, notify
from kit.errors import Conflict, Forbidden, HeliuError, NoMoney, NotFound, Refused, Unauthenticated
from kit.ids import new_id
from kit.units import MicroYuan
from quotas import api as quotas
from quotas.vocabulary import (
    ALLOWANCES_CHANNEL,
    KEYS_CHANNEL,
    PLACES_CHANNEL,
    RATES_CHANNEL,
    AllowanceLease,
    FirmId,
    KeyGrant,
    KeyId,
    LeaseId,
    ModelName,
    Payer,
    PlaceAsk,
    PlaceLease,
    RateAsk,
    RateLease,
)
from serving import api as serving
from serving.admission import Lease, Rate, TopUp
from serving.vocabulary import REPLICAS_CHANNEL, RouteTable

log = logging.getLogger(__name__)

RATE_MARGIN = timedelta(seconds=5)


class _NothingFree(Exception):
    """Less is free than was asked for at least: the transaction takes nothing."""


class ControlPlane:
    """All ports of one gateway; `holder` names it for as long as its folder exists."""

    def __init__(self, db: Database, *, holder: str, lease_seconds: int) -> None:
        self._db = db
        self.holder = holder
        self._lease_seconds = lease_seconds
        self._life = f"{holder}/{new_id('req')}"  # what an earlier life leased of a minute may have been used
        self.successors: dict[str, str] = {}
        """A lease that was shrunk goes on under another id."""

    # --- keys -----------------------------------------------------------------------------------------------------

    async def load(self, bearer: str) -> KeyGrant | None:
        """See ports.Keys."""
        try:
            async with self._db.transaction() as tx:
                return await quotas.load_key(tx, bearer, now=utc_now())
        except (Unauthenticated, Forbidden):
            return None

    async def reload(self, key_ids: Sequence[KeyId]) -> dict[KeyId, KeyGrant]:
        """See ports.Keys."""
        now = utc_now()
        async with self._db.transaction() as tx:
            found = await quotas.keys_limits(tx, key_ids, now=now)
        return {key_id: grant for key_id, grant in found.items() if grant.usable(now=now)}

    async def over(self, key_ids: Sequence[KeyId]) -> set[KeyId]:
        """See ports.Keys."""
        async with self._db.transaction() as tx:
            return await quotas.keys_over(tx, key_ids, now=utc_now())

    async def key_changes(self) -> AsyncIterator[str]:
        """Ids of changed keys, after a first "*"."""
        async for channel, payload in self._db.listen([KEYS_CHANNEL]):
            yield payload if channel else "*"

    # --- routes ---------------------------------------------------------------------------------------------------

    async def table(self) -> tuple[RouteTable, dict[str, Rate]]:
        """See ports.Routes. A rate is the dearest within the next seconds, so that a hold covers a price change."""
        now = utc_now()
        async with self._db.transaction() as tx:
            table = await serving.route_table(tx)
            served = {deployment.model for deployment in table.deployments.values()}
            rates = {str(name): rate for name in served if (rate := await _rate(tx, name, now)) is not None}
        return table, rates

    async def route_changes(self) -> AsyncIterator[str]:
        """Something whenever replicas, adapters or deployments change."""
        async for _, payload in self._db.listen([REPLICAS_CHANNEL]):
            yield payload

    async def wanted(self, adapters: dict[str, datetime]) -> None:
        """Say which adapters were asked for, so that they are loaded and stay."""
        async with self._db.transaction() as tx:
            await serving.note_adapter_use(tx, adapters)

    # --- money ----------------------------------------------------------------------------------------------------

    async def grow(
        self, payer: str, lease: Lease | None, *, least: TopUp, wanted: int, tokens_wanted: int
    ) -> Lease | None:
        """See ports.Treasury."""
        money = wanted if least.missing else 0
        try:
            if lease is None:
                return await self._db.retrying(lambda tx: self._begun(tx, payer, money, tokens_wanted, least))
            before, after = await self._db.retrying(lambda tx: self._grown(tx, lease, money, tokens_wanted, least))
        except (_NothingFree, NoMoney):
            return lease
        except (NotFound, Conflict):
            return None  # the lease is lost: it was not renewed in time
        lease.left += after.amount_left - before.amount_left
        lease.tokens_left += after.tokens_left - before.tokens_left
        lease.expires_ms = _ms(after.expires_at)
        return lease

    async def renew(self, lease: Lease) -> None:
        """See ports.Treasury."""
        try:
            seen = await self._db.retrying(lambda tx: self._renewed(tx, lease))
        except (NotFound, Conflict):
            lease.expires_ms = 0
            return
        lease.expires_ms, lease.recalled = _ms(seen.expires_at), seen.recalled

    async def shrink(self, lease: Lease, *, keep: int, keep_tokens: int) -> None:
        """See ports.Treasury. What is kept goes on as a lease of its own, taken in the same transaction."""

        async def work(tx: AsyncSession) -> AllowanceLease | None:
            await quotas.return_allowance(tx, lease_id=LeaseId(lease.id), holder=self.holder, now=utc_now())
            return await self._begin(tx, lease.payer, keep, keep_tokens, kept=True) if keep or keep_tokens else None

        kept = await self._db.retrying(work)
        if kept is not None:
            self.successors[lease.id] = kept.id
            lease.id, lease.expires_ms, lease.recalled = kept.id, _ms(kept.expires_at), False

    async def rule_against(self, payer: str, missing: TopUp) -> Refused | None:
        """See ports.Treasury."""
        async with self._db.transaction() as tx:
            whose, now = Payer.named(payer), utc_now()
            room = await quotas.room_of(tx, whose, now=now)
            ruled = room.refusal(micro_yuan=missing.missing, tokens=missing.tokens)
            return ruled or await quotas.cash_missing(tx, firm_id=whose.firm_id, amount=missing.missing, now=now)

    async def recall(self, firm_id: str) -> bool:
        """See ports.Treasury."""
        firm = FirmId(firm_id)
        async with self._db.transaction() as tx:
            await quotas.recall_allowances(tx, firm_id=firm, except_holder=self.holder, now=utc_now())
            others = await quotas.leased_elsewhere(tx, firm_id=firm, except_holder=self.holder)
            if others:
                await notify(tx, ALLOWANCES_CHANNEL, f"{self.holder} {firm_id}")
        return others

    async def recalls(self) -> AsyncIterator[str]:
        """See ports.Treasury."""
        async for _, payload in self._db.listen([ALLOWANCES_CHANNEL]):
            holder, _, firm_id = payload.partition(" ")
            if firm_id and holder != self.holder:
                yield firm_id

    async def left_behind(self) -> list[str]:
        """Money leases of an earlier process with this name; the places it had are free, since nothing of it runs."""
        async with self._db.transaction() as tx:
            await quotas.forget_places(tx, holder=self.holder)
            return [lease.id for lease in await quotas.open_leases(tx, holder=self.holder)]

    async def give_back(self, lease_ids: Sequence[str]) -> None:
        """Return leases of an earlier process, once its usage is shipped."""
        async with self._db.transaction() as tx:
            for lease_id in lease_ids:
                await quotas.return_allowance(tx, lease_id=LeaseId(lease_id), holder=self.holder, now=utc_now())

    async def _begun(self, tx: AsyncSession, payer: str, money: int, tokens: int, least: TopUp) -> Lease:
        begun = await self._begin(tx, payer, money, tokens)
        if begun.amount_left < least.missing or begun.tokens_left < least.tokens:
            raise _NothingFree
        return _lease(begun, payer)

    async def _grown(
        self, tx: AsyncSession, lease: Lease, money: int, tokens: int, least: TopUp
    ) -> tuple[AllowanceLease, AllowanceLease]:
        before = await self._renewed(tx, lease)
        lease.recalled = before.recalled
        after = await self._renewed(tx, lease, top_up=money, more_tokens=tokens)
        more_money, more_tokens = after.amount_left - before.amount_left, after.tokens_left - before.tokens_left
        if more_money < least.missing or more_tokens < least.tokens:
            raise _NothingFree
        return before, after

    async def _begin(
        self, tx: AsyncSession, payer: str, amount: int, tokens: int, *, kept: bool = False
    ) -> AllowanceLease:
        whose = Payer.named(payer)
        return await quotas.lease_allowance(
            tx, holder=self.holder, firm_id=whose.firm_id, amount=MicroYuan(amount), payer=whose, tokens=tokens,
            kept=kept, lease_seconds=self._lease_seconds, now=utc_now(),
        )  # fmt: skip

    async def _renewed(
        self, tx: AsyncSession, lease: Lease, *, top_up: int = 0, more_tokens: int = 0
    ) -> AllowanceLease:
        return await quotas.renew_allowance(
            tx, lease_id=LeaseId(lease.id), holder=self.holder, top_up=top_up,
            tokens_left=lease.tokens_left + lease.tokens_owed, more_tokens=more_tokens,
            lease_seconds=self._lease_seconds, now=utc_now(),
        )  # fmt: skip

    # --- rate windows ---------------------------------------------------------------------------------------------

    async def lease_windows(self, minute: int, asks: Sequence[RateAsk]) -> list[RateLease]:
        """See ports.Rates."""
        async with self._db.transaction() as tx:
            return await quotas.lease_windows(tx, holder=self._life, minute=minute, asks=asks, now=utc_now())

    async def return_windows(self, minute: int, keeps: Sequence[RateAsk]) -> list[RateLease]:
        """See ports.Rates."""
        async with self._db.transaction() as tx:
            return await quotas.return_windows(tx, holder=self._life, minute=minute, keeps=keeps, now=utc_now())

    async def recall_window(self, subject: str, minute: int) -> bool:
        """See ports.Rates."""
        async with self._db.transaction() as tx:
            return await quotas.recall_windows(tx, holder=self._life, minute=minute, subject=subject) > 0

    async def limit_recalls(self) -> AsyncIterator[tuple[str, int | None]]:
        """See ports.Rates."""
        async for channel, payload in self._db.listen([RATES_CHANNEL, PLACES_CHANNEL]):
            match payload.split(" "):
                case [subject, minute, asker] if channel == RATES_CHANNEL and asker != self._life:
                    yield subject, int(minute)
                case [subject, asker] if channel == PLACES_CHANNEL and asker != self.holder:
                    yield subject, None
                case _:
                    pass

    async def lease_places(self, asks: Sequence[PlaceAsk]) -> list[PlaceLease]:
        """See ports.PlaceSource."""
        async with self._db.transaction() as tx:
            return await quotas.lease_places(
                tx, holder=self.holder, asks=asks, lease_seconds=self._lease_seconds, now=utc_now()
            )

    async def return_places(self, keeps: Sequence[PlaceAsk]) -> list[PlaceLease]:
        """See ports.PlaceSource."""
        async with self._db.transaction() as tx:
            return await quotas.return_places(
                tx, holder=self.holder, keeps=keeps, lease_seconds=self._lease_seconds, now=utc_now()
            )

    async def recall_places(self, subject: str) -> bool:
        """See ports.PlaceSource."""
        async with self._db.transaction() as tx:
            return await quotas.recall_places(tx, holder=self.holder, subject=subject, now=utc_now()) > 0

    async def forget_places(self) -> None:
        """See ports.PlaceSource."""
        async with self._db.transaction() as tx:
            await quotas.forget_places(tx, holder=self.holder)

    # --- usage ----------------------------------------------------------------------------------------------------

    async def spend(self, grant: KeyGrant, now: datetime) -> dict[str, object]:
        """See ports.Spending."""
        period = quotas.period_of(now)
        async with self._db.transaction() as tx:
            statement = await quotas.statement(tx, grant.firm_id, period, now)
        lines = [line for line in statement.lines if line.subject.split(" ", 1)[0] == grant.key_id]
        return {
            "object": "usage",
            "key_id": grant.key_id,
            "period": period,
            "spent_micro_yuan": sum(line.amount for line in lines),
            "data": [
                {"model": line.subject.split(" ", 1)[1], "amount_micro_yuan": line.amount, **line.quantities}
                for line in lines
            ],
        }


async def _rate(tx: AsyncSession, model: str, now: datetime) -> Rate | None:
    try:
        found = [await quotas.token_rate(tx, model=ModelName(model), at=at) for at in (now, now + RATE_MARGIN)]
    except HeliuError:
        return None  # nobody has set a price: the gateway refuses with that reason
    return Rate(
        input=max(rate.input for rate in found),
        cached_input=max(rate.cached_input for rate in found),
        output=max(rate.output for rate in found),
    )


def _lease(lease: AllowanceLease, payer: str) -> Lease:
    return Lease(lease.id, payer, lease.amount_left, _ms(lease.expires_at), tokens_left=lease.tokens_left)


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1_000)
