"""What is in use: at this instant, kept up while a cycle starts work, and lately, with a half-life."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import log

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.rooms import Ground, grounds, workers_of
from scheduler.sharing import Member, QuotaKey, Sharing
from scheduler.snapshot import Running, State, Waiting
from scheduler.vocabulary import Placement


class Facts:
    """Capacity and room of open nodes by pool, and what each firm uses; the future has no part in it."""

    def __init__(self, state: State, sharing: Sharing) -> None:
        self._sharing = sharing
        self.capacity: Mapping[PoolName, Ground] = grounds(state.nodes.values())
        self.free = {pool: ground.empty() for pool, ground in self.capacity.items()}
        self.used: dict[QuotaKey, int] = {}
        self._reserved: dict[QuotaKey, int] = {}
        self._shared: dict[tuple[Member, PoolName], int] = {}
        self._sizes: Mapping[PoolName, int] = {
            pool: int(ground.rooms.gpu_milli.sum()) for pool, ground in self.capacity.items()
        }
        for work in state.running.values():
            self._take(work.firm_id, work.qos, work.placement)

    def start(self, workload: Waiting, placement: Placement) -> None:
        """It is placed there."""
        self._take(workload.firm_id, workload.qos, placement)

    def size(self, pool: PoolName) -> int:
        """Thousandths of all open nodes of a pool."""
        return self._sizes.get(pool, 0)

    def lent_left(self, key: QuotaKey) -> int:
        """What the firm's tree has left to lend; negative when quotas were lowered."""
        tree = self._sharing.root(key[0]), key[1]
        return self._sharing.lent(*tree) - self._shared.get(tree, 0)

    def quota_left(self, key: QuotaKey, qos: QoS) -> int:
        """How much more the firm may use for work of this class."""
        quota, used = self._sharing.quota(key), self.used.get(key, 0)
        left = min(quota.ceiling - used, max(0, quota.kept - used) + self.lent_left(key))
        return min(left, quota.nominal - self._reserved.get(key, 0)) if qos is QoS.RESERVED else left

    def _take(self, firm_id: FirmId, qos: QoS, placement: Placement) -> None:
        if placement.pool in self.free:
            room = self.free[placement.pool]
            for node, devices in workers_of(placement, room.ground):
                room.take(node, devices, placement.shape, firm_id)
        key, need = (firm_id, placement.pool), placement.need
        quota, used = self._sharing.quota(key), self.used.get(key, 0)
        tree = self._sharing.root(firm_id), placement.pool
        self._shared[tree] = self._shared.get(tree, 0) + quota.shared(used + need) - quota.shared(used)
        self.used[key] = used + need
        if qos is QoS.RESERVED:
            self._reserved[key] = self._reserved.get(key, 0) + need


@dataclass(slots=True)
class Lately:
    """What firms held of pools on average, each second weighing half as much a half-life later."""

    half_life_seconds: int
    _used: dict[QuotaKey, tuple[float, datetime]] = field(default_factory=dict[QuotaKey, tuple[float, datetime]])

    def add(self, key: QuotaKey, milli: int, time: timedelta, *, now: datetime) -> None:
        """So many thousandths were held for that long, until now."""
        self.keep(key, self._weighed(key, now) + milli * time.total_seconds(), as_of=now)

    def keep(self, key: QuotaKey, milli_seconds: float, *, as_of: datetime) -> None:
        """What it all weighed at an instant."""
        self._used[key] = (milli_seconds, as_of)

    def held(self, running: Iterable[Running], *, now: datetime) -> dict[QuotaKey, int]:
        """The average in thousandths, for each firm and pool.

        What runs counts from its start on with all it is expected to use, so that a burst does not come for free.
        """
        used = {key: self._weighed(key, now) for key in self._used}
        for work in running:
            key = work.firm_id, work.placement.pool
            seconds = (max(now, work.ends_at or now) - (work.since or now)).total_seconds()
            used[key] = used.get(key, 0.0) + work.need * min(seconds, self.half_life_seconds)
        return {key: round(amount * log(2) / self.half_life_seconds) for key, amount in used.items()}

    def _weighed(self, key: QuotaKey, now: datetime) -> float:
        amount, as_of = self._used.get(key, (0.0, now))
        return amount * 0.5 ** (max(0.0, (now - as_of).total_seconds()) / self.half_life_seconds)
