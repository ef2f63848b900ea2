"""Room and quota for many gangs in one transaction: locked in one order, given out one gang after the other.

Every admission locks nodes in id order, then trees in name order, so that no two of them wait in a circle. What is
given out here becomes true with `write`; until then it is arithmetic on locked rows, and `put_back` undoes it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import sql
from kit.units import MILLI_PER_GPU
from quotas.vocabulary import FirmId, PoolName
from scheduler.sharing import Member, QuotaKey, Sharing
from scheduler.vocabulary import Placement

_COLUMNS = ("gpu_milli", "cpu_milli", "memory_mib")
Gang = tuple[FirmId, Placement]
Tree = tuple[Member, PoolName]
Place = tuple[str, str | int]
"""A node's id, and one of its columns (gpu_milli, cpu_milli, memory_mib) or the index of an accelerator."""


@dataclass(slots=True)
class Taking:
    """What the locked nodes have free and the locked trees have in use, while gangs are served."""

    sharing: Sharing
    free: dict[Place, int]  # of each node that takes work
    firms: dict[Place, FirmId | None]  # whose an accelerator is: shared by one firm only
    used: dict[Tree, dict[FirmId, int]]  # by tree and pool: what its firms use
    taken: Counter[Place] = field(default_factory=Counter[Place])
    counted: Counter[QuotaKey] = field(default_factory=Counter[QuotaKey])

    def take(self, firm_id: FirmId, placement: Placement) -> bool:
        """Give a gang its room and quota, or nothing: somebody else was faster."""
        wanted = _by_place(placement)
        key = firm_id, placement.pool
        used = self.used[self.sharing.root(firm_id), placement.pool]
        if any(self.free.get(place, 0) < amount for place, amount in wanted.items()):
            return False
        if any(self.firms.get(place) not in (None, firm_id) for place in wanted):
            return False
        if self.sharing.left(key, used) < placement.need:
            return False
        self._move(firm_id, placement, +1)
        return True

    def put_back(self, firm_id: FirmId, placement: Placement) -> None:
        """The gang does not start after all."""
        self._move(firm_id, placement, -1)

    def _move(self, firm_id: FirmId, placement: Placement, sign: int) -> None:
        for place, amount in _by_place(placement).items():
            self.free[place] -= sign * amount
            self.taken[place] += sign * amount
            if place in self.firms:
                self.firms[place] = firm_id if self.free[place] < MILLI_PER_GPU else None
        need = sign * placement.need
        used = self.used[self.sharing.root(firm_id), placement.pool]
        used[firm_id] = used.get(firm_id, 0) + need
        self.counted[firm_id, placement.pool] += need


async def lock_rooms(tx: AsyncSession, gangs: Sequence[Gang], sharing: Sharing) -> Taking:
    """Lock what these gangs may take, and say what is there."""
    nodes = sorted({node for _, placement in gangs for node in placement.nodes})
    rows = await tx.execute(
        sql("""
            SELECT id, gpu_milli - placed_milli AS gpu_milli, cpu_milli - placed_cpu_milli AS cpu_milli,
                memory_mib - placed_memory_mib AS memory_mib, state = 'ready' AND cordon_reason IS NULL
                AND NOT EXISTS (SELECT 1 FROM scheduler.node AS ghost WHERE ghost.address = node.address
                    AND ghost.state = 'lost' AND ghost.placed_milli + ghost.placed_cpu_milli > 0) AS is_open
            FROM scheduler.node WHERE id = ANY(CAST(:nodes AS text[])) ORDER BY id FOR UPDATE"""),
        {"nodes": nodes},
    )
    free: dict[Place, int] = {}
    for row in rows:
        if row.is_open:
            free |= {(row.id, column): getattr(row, column) for column in _COLUMNS}
    firms: dict[Place, FirmId | None] = {}
    for node, index, placed, firm in await _devices(tx, gangs):
        free[node, index], firms[node, index] = MILLI_PER_GPU - placed, firm
    trees = sorted({(sharing.root(firm), placement.pool) for firm, placement in gangs})
    await _lock_trees(tx, trees)
    await _lock_quotas(tx, {(firm, placement.pool) for firm, placement in gangs})
    return Taking(sharing, free, firms, await _used(tx, sharing, trees))


async def write(tx: AsyncSession, taking: Taking) -> None:
    """Make true what was given out. CHECKs have the last word."""
    taken = +taking.taken
    await _add_to_nodes(tx, taken)
    await _add_to_devices(tx, taken, taking.firms)
    await _add_to_quotas(tx, +taking.counted)


async def give_back_many(tx: AsyncSession, gangs: Iterable[Gang]) -> None:
    """Return what gangs held. Called once for each, in the transaction that ends its attempt."""
    held, quotas = Counter[Place](), Counter[QuotaKey]()
    for firm, placement in gangs:
        held.update(_by_place(placement))
        quotas[firm, placement.pool] += placement.need
    given = Counter({place: -amount for place, amount in held.items()})
    await _add_to_nodes(tx, given)
    await _add_to_devices(tx, given, {})
    await tx.execute(
        sql("""
            WITH locked AS MATERIALIZED (
                SELECT q.firm_id, q.pool, w.milli FROM scheduler.quota_use AS q
                JOIN unnest(CAST(:firms AS text[]), CAST(:pools AS text[]), CAST(:millis AS integer[]))
                    AS w (firm_id, pool, milli) ON w.firm_id = q.firm_id AND w.pool = q.pool
                ORDER BY q.firm_id, q.pool FOR UPDATE OF q)
            UPDATE scheduler.quota_use AS u SET used_milli = u.used_milli - locked.milli
            FROM locked WHERE u.firm_id = locked.firm_id AND u.pool = locked.pool"""),
        _columns(quotas),
    )


async def _devices(tx: AsyncSession, gangs: Sequence[Gang]) -> Iterable[Any]:
    """(node, index, thousandths placed, firm) of the accelerators of their nodes, which are locked."""
    nodes = sorted({node for _, placement in gangs if placement.gpu_milli for node in placement.nodes})
    if not nodes:
        return ()
    query = sql("""
        SELECT node_id, index, placed_milli, firm_id FROM scheduler.device
        WHERE node_id = ANY(CAST(:nodes AS text[]))""")
    return await tx.execute(query, {"nodes": nodes})


async def _lock_trees(tx: AsyncSession, trees: Sequence[Tree]) -> None:
    await tx.execute(
        sql("""
            SELECT pg_advisory_xact_lock(hashtextextended(tree, 0))
            FROM unnest(CAST(:trees AS text[])) WITH ORDINALITY AS u (tree, i) ORDER BY i"""),
        {"trees": [f"quota:{root}:{pool}" for root, pool in trees]},
    )


async def _lock_quotas(tx: AsyncSession, keys: set[QuotaKey]) -> None:
    """Before money: whoever ends work has these rows when it asks for the balances."""
    ordered = sorted(keys)
    await tx.execute(
        sql("""
            SELECT FROM scheduler.quota_use AS q JOIN unnest(CAST(:firms AS text[]), CAST(:pools AS text[]))
                AS w (firm_id, pool) ON w.firm_id = q.firm_id AND w.pool = q.pool
            ORDER BY q.firm_id, q.pool FOR UPDATE OF q"""),
        {"firms": [firm for firm, _ in ordered], "pools": [pool for _, pool in ordered]},
    )


async def _used(tx: AsyncSession, sharing: Sharing, trees: Sequence[Tree]) -> dict[Tree, dict[FirmId, int]]:
    """What the firms of each tree have in use in its pool."""
    members = {tree: sharing.members(tree[0]) for tree in trees}
    rows = await tx.execute(
        sql("""
            SELECT firm_id, pool, used_milli FROM scheduler.quota_use
            WHERE pool = ANY(CAST(:pools AS text[])) AND firm_id = ANY(CAST(:firms AS text[]))"""),
        {
            "pools": sorted({pool for _, pool in trees}),
            "firms": sorted({str(member) for of in members.values() for member in of}),
        },
    )
    used = {(row.firm_id, row.pool): row.used_milli for row in rows}
    return {
        tree: {FirmId(str(one)): used[str(one), tree[1]] for one in of if (str(one), tree[1]) in used}
        for tree, of in members.items()
    }


async def _add_to_nodes(tx: AsyncSession, amounts: Counter[Place]) -> None:
    nodes = sorted({node for node, _ in amounts})
    if nodes:
        await tx.execute(
            sql("""
                WITH locked AS MATERIALIZED (
                    SELECT id FROM scheduler.node WHERE id = ANY(CAST(:ids AS text[])) ORDER BY id FOR UPDATE)
                UPDATE scheduler.node AS n SET placed_milli = n.placed_milli + u.gpu_milli,
                    placed_cpu_milli = n.placed_cpu_milli + u.cpu_milli,
                    placed_memory_mib = n.placed_memory_mib + u.memory_mib
                FROM unnest(CAST(:ids AS text[]), CAST(:gpu_milli AS integer[]), CAST(:cpu_milli AS integer[]),
                    CAST(:memory_mib AS integer[])) AS u (id, gpu_milli, cpu_milli, memory_mib)
                JOIN locked USING (id) WHERE n.id = u.id"""),
            {"ids": nodes, **{column: [amounts[node, column] for node in nodes] for column in _COLUMNS}},
        )


async def _add_to_devices(tx: AsyncSession, amounts: Counter[Place], firms: Mapping[Place, FirmId | None]) -> None:
    """Their nodes are locked. An accelerator that is wholly free again is nobody's."""
    places = sorted((node, index) for node, index in amounts if isinstance(index, int))
    if places:
        done = await tx.execute(
            sql("""
                UPDATE scheduler.device AS d SET placed_milli = d.placed_milli + w.milli,
                    firm_id = CASE WHEN d.placed_milli + w.milli > 0 THEN coalesce(w.firm_id, d.firm_id) END
                FROM unnest(CAST(:nodes AS text[]), CAST(:indexes AS integer[]), CAST(:millis AS integer[]),
                    CAST(:firms AS text[])) AS w (node_id, index, milli, firm_id)
                WHERE d.node_id = w.node_id AND d.index = w.index
                  AND (w.milli < 0 OR d.firm_id IS NULL OR d.firm_id = w.firm_id) RETURNING d.index"""),
            {
                "nodes": [node for node, _ in places],
                "indexes": [index for _, index in places],
                "millis": [amounts[place] for place in places],
                "firms": [firms.get(place) for place in places],
            },
        )
        assert len(done.all()) == len(places), "an accelerator is shared by one firm only"


async def _add_to_quotas(tx: AsyncSession, amounts: Counter[QuotaKey]) -> None:
    if amounts:
        await tx.execute(
            sql("""
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


def _by_place(placement: Placement) -> Counter[Place]:
    """What a gang takes, place by place."""
    shape, wanted = placement.shape, Counter[Place]()
    each = {"gpu_milli": shape.demand, "cpu_milli": shape.cpu_milli, "memory_mib": shape.memory_mib}
    for node, devices in zip(placement.nodes, placement.devices, strict=True):
        wanted.update({(node, column): amount for column, amount in each.items() if amount})
        wanted.update({(node, index): shape.gpu_milli for index in devices})
    return wanted
