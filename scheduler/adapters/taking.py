"""Room and quota for many gangs in one transaction: locked in one order, given out one gang after the other.

Every admission locks nodes in id order, then trees in name order, so that no two of them wait in a circle. What is
given out here becomes true with `write`; until then it is arithmetic on locked rows, and `put_back` undoes it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quotas.vocabulary import FirmId, PoolName
from scheduler.sharing import Member, QuotaKey, Sharing
from scheduler.vocabulary import Placement

Gang = tuple[FirmId, Placement]


@dataclass(slots=True)
class Taking:
    """What the locked nodes have free and the locked trees have in use, while gangs are served."""

    sharing: Sharing
    free: dict[str, int]  # thousandths of each node that takes work
    used: dict[tuple[Member, PoolName], dict[FirmId, int]]  # by tree and pool: what its firms use
    taken: Counter[str] = field(default_factory=Counter[str])
    counted: Counter[QuotaKey] = field(default_factory=Counter[QuotaKey])

    def take(self, firm_id: FirmId, placement: Placement) -> bool:
        """Give a gang its room and quota, or nothing: somebody else was faster."""
        wanted = _by_node(placement)
        key, need = (firm_id, placement.pool), len(placement.nodes) * placement.gpu_milli
        used = self.used[self.sharing.root(firm_id), placement.pool]
        if any(self.free.get(node, 0) < milli for node, milli in wanted.items()):
            return False
        if self.sharing.left(key, used) < need:
            return False
        self._move(firm_id, placement, +1)
        return True

    def put_back(self, firm_id: FirmId, placement: Placement) -> None:
        """The gang does not start after all."""
        self._move(firm_id, placement, -1)

    def _move(self, firm_id: FirmId, placement: Placement, sign: int) -> None:
        for node, milli in _by_node(placement).items():
            self.free[node] -= sign * milli
            self.taken[node] += sign * milli
        need = sign * len(placement.nodes) * placement.gpu_milli
        used = self.used[self.sharing.root(firm_id), placement.pool]
        used[firm_id] = used.get(firm_id, 0) + need
        self.counted[firm_id, placement.pool] += need


async def lock_rooms(tx: AsyncSession, gangs: Sequence[Gang], sharing: Sharing) -> Taking:
    """Lock what these gangs may take, and say what is there."""
    nodes = sorted({node for _, placement in gangs for node in placement.nodes})
    rows = await tx.execute(
        text("""
            SELECT id, gpu_milli - placed_milli AS free, state = 'ready' AND cordon_reason IS NULL
                AND NOT EXISTS (SELECT 1 FROM scheduler.node AS ghost WHERE ghost.address = node.address
                                AND ghost.state = 'lost' AND ghost.placed_milli > 0) AS is_open
            FROM scheduler.node WHERE id = ANY(CAST(:nodes AS text[])) ORDER BY id FOR UPDATE"""),
        {"nodes": nodes},
    )
    free = {row.id: row.free for row in rows if row.is_open}
    trees = sorted({(sharing.root(firm), placement.pool) for firm, placement in gangs})
    for root, pool in trees:
        await tx.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:tree, 0))"), {"tree": f"quota:{root}:{pool}"}
        )
    return Taking(sharing, free, {tree: await _used(tx, sharing, *tree) for tree in trees})


async def write(tx: AsyncSession, taking: Taking) -> None:
    """Make true what was given out. CHECKs have the last word."""
    await _add_to_nodes(tx, +taking.taken)
    await _add_to_quotas(tx, +taking.counted)


async def give_back_many(tx: AsyncSession, gangs: Iterable[Gang]) -> None:
    """Return what gangs held. Called once for each, in the transaction that ends its attempt."""
    nodes, quotas = Counter[str](), Counter[QuotaKey]()
    for firm, placement in gangs:
        nodes.update(_by_node(placement))
        quotas[firm, placement.pool] += len(placement.nodes) * placement.gpu_milli
    await _add_to_nodes(tx, Counter({node: -milli for node, milli in nodes.items()}))
    await tx.execute(
        text("""
            WITH locked AS MATERIALIZED (
                SELECT q.firm_id, q.pool, w.milli FROM scheduler.quota_use AS q
                JOIN unnest(CAST(:firms AS text[]), CAST(:pools AS text[]), CAST(:millis AS integer[]))
                    AS w (firm_id, pool, milli) ON w.firm_id = q.firm_id AND w.pool = q.pool
                ORDER BY q.firm_id, q.pool FOR UPDATE OF q)
            UPDATE scheduler.quota_use AS u SET used_milli = u.used_milli - locked.milli
            FROM locked WHERE u.firm_id = locked.firm_id AND u.pool = locked.pool"""),
        _columns(quotas),
    )


async def _used(tx: AsyncSession, sharing: Sharing, root: Member, pool: PoolName) -> dict[FirmId, int]:
    rows = await tx.execute(
        text("SELECT firm_id, used_milli FROM scheduler.quota_use WHERE pool = :pool AND firm_id = ANY(:firms)"),
        {"pool": pool, "firms": [str(member) for member in sharing.members(root)]},
    )
    return {FirmId(row.firm_id): row.used_milli for row in rows}


async def _add_to_nodes(tx: AsyncSession, amounts: Counter[str]) -> None:
    if amounts:
        await tx.execute(
            text("""
                WITH locked AS MATERIALIZED (
                    SELECT id FROM scheduler.node WHERE id = ANY(CAST(:ids AS text[])) ORDER BY id FOR UPDATE)
                UPDATE scheduler.node AS n SET placed_milli = n.placed_milli + u.milli
                FROM unnest(CAST(:ids AS text[]), CAST(:millis AS integer[])) AS u (id, milli)
                JOIN locked USING (id) WHERE n.id = u.id"""),
            {"ids": list(amounts), "millis": list(amounts.values())},
        )


async def _add_to_quotas(tx: AsyncSession, amounts: Counter[QuotaKey]) -> None:
    if amounts:
        await tx.execute(
            text("""
                INSERT INTO scheduler.quota_use AS u (firm_id, pool, used_milli)
                SELECT w.firm_id, w.pool, w.milli FROM unnest(CAST(:firms AS text[]), CAST(:pools AS text[]),
                    CAST(:millis AS integer[])) AS w (firm_id, pool, milli)
                ON CONFLICT (firm_id, pool) DO UPDATE SET used_milli = u.used_milli + excluded.used_milli"""),
            _columns(amounts),
        )


def _columns(amounts: Counter[QuotaKey]) -> dict[str, list[object]]:
    keys = sorted(amounts)
    return {
        "firms": [firm for firm, _ in keys],
        "pools": [pool for _, pool in keys],
        "millis": [amounts[key] for key in keys],
    }


def _by_node(placement: Placement) -> Counter[str]:
    return Counter({node: count * placement.gpu_milli for node, count in Counter(placement.nodes).items()})
