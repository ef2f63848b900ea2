"""A conflict in the database while a gateway's lease grows, is renewed or shrinks is tried again, not reported."""

from collections.abc import Awaitable, Callable

import pytest

from kit.db import Database
from quotas import api as quotas
from serving.admission import Lease, TopUp
from serving.gateway.bench_target import furnish
from serving.gateway.control_plane import ControlPlane
from tests.support.conflicts import DEADLOCK, refuse_writes


async def begin(plane: ControlPlane, payer: str) -> Lease:
    lease = await plane.grow(payer, None, least=TopUp(1, 0), wanted=1_000_000, tokens_wanted=0)
    assert lease is not None
    return lease


async def renew(plane: ControlPlane, lease: Lease) -> int:
    before = lease.expires_ms
    await plane.renew(lease)
    assert lease.expires_ms >= before > 0
    return 1_000_000


async def grow(plane: ControlPlane, lease: Lease) -> int:
    assert await plane.grow(lease.payer, lease, least=TopUp(1, 0), wanted=500_000, tokens_wanted=0) is lease
    return 1_500_000


async def shrink(plane: ControlPlane, lease: Lease) -> int:
    before = lease.id
    await plane.shrink(lease, keep=400_000, keep_tokens=0)
    assert lease.id != before
    return 400_000


@pytest.mark.parametrize("change", [renew, grow, shrink])
async def test_a_lease_is_changed_once_after_a_deadlock(
    db: Database, change: Callable[[ControlPlane, Lease], Awaitable[int]]
) -> None:
    made = await furnish(db, [], model="city-model")
    plane = ControlPlane(db, holder="gw-1", lease_seconds=60)
    lease = await begin(plane, made.firm_id)
    await refuse_writes(db, "quotas.allowance_lease", code=DEADLOCK)
    leased = await change(plane, lease)
    assert await plane.left_behind() == [lease.id]
    async with db.transaction() as tx:
        account = await quotas.account_of(tx, made.firm_id)
    assert account.balance - account.available == leased


async def test_a_first_lease_is_taken_once_after_a_deadlock(db: Database) -> None:
    made = await furnish(db, [], model="city-model")
    plane = ControlPlane(db, holder="gw-1", lease_seconds=60)
    await refuse_writes(db, "quotas.allowance_lease", code=DEADLOCK)
    lease = await begin(plane, made.firm_id)
    assert (lease.left, await plane.left_behind()) == (1_000_000, [lease.id])
