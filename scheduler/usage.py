"""What is in use and free at this instant, kept up while a cycle starts work: for telling why something waits."""

from collections.abc import Mapping

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.sharing import Member, QuotaKey, Sharing
from scheduler.snapshot import State, Waiting
from scheduler.vocabulary import NodeId, Placement


class Facts:
    """Capacity and room of open nodes by pool, and what each firm uses; the future has no part in it."""

    def __init__(self, state: State, sharing: Sharing) -> None:
        self._sharing = sharing
        self._pool_of = {node.id: node.pool for node in state.nodes.values() if node.is_open}
        self.capacity: dict[PoolName, dict[NodeId, int]] = {}
        for node in state.nodes.values():
            if node.is_open:
                self.capacity.setdefault(node.pool, {})[node.id] = node.gpu_milli
        self.free = {pool: dict(nodes) for pool, nodes in self.capacity.items()}
        self.used: dict[QuotaKey, int] = {}
        self._reserved: dict[QuotaKey, int] = {}
        self._shared: dict[tuple[Member, PoolName], int] = {}
        self._sizes: Mapping[PoolName, int] = {pool: sum(nodes.values()) for pool, nodes in self.capacity.items()}
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
        for node in placement.nodes:
            if node in self._pool_of:
                self.free[self._pool_of[node]][node] -= placement.gpu_milli
        key, need = (firm_id, placement.pool), len(placement.nodes) * placement.gpu_milli
        quota, used = self._sharing.quota(key), self.used.get(key, 0)
        tree = self._sharing.root(firm_id), placement.pool
        self._shared[tree] = self._shared.get(tree, 0) + quota.shared(used + need) - quota.shared(used)
        self.used[key] = used + need
        if qos is QoS.RESERVED:
            self._reserved[key] = self._reserved.get(key, 0) + need
