"""Nodes, pools and the queue."""

from fastapi import APIRouter

from kit.auth import Principal
from quotas.api import Action, CurrentPrincipal, Db, Now, audit, home_firm, is_staff, quota_nominal, require
from quotas.vocabulary import FirmId, PoolName
from scheduler import explain, fleet, kept_times
from scheduler.adapters import store
from scheduler.adapters.tables import NodeRow
from scheduler.vocabulary import NodeState
from scheduler.web.edge import EdgeOf
from scheduler.web.schemas import CordonIn, NodeOut, PoolOut
from scheduler.web.views import place_out
from scheduler.web.why_schemas import QueueOut

router = APIRouter(prefix="/api", tags=["fleet"])


@router.get("/nodes")
async def list_nodes(principal: CurrentPrincipal, db: Db) -> list[NodeOut]:
    """Machines of the city's pools; lost ones only while work is still placed on them."""
    require(principal, Action.FLEET_READ, firm_id=None)
    async with db.transaction() as tx:
        rows = await store.nodes(tx)
    return [NodeOut.model_validate(row) for row in rows if row.state == NodeState.READY or row.placed_milli]


@router.post("/nodes/{node_id}/cordon")
async def cordon(node_id: str, body: CordonIn, principal: CurrentPrincipal, db: Db, now: Now) -> NodeOut:
    """Close a node for new work; with `drain`, what runs on it is moved, at no charge.

    With `finish_by` what will have ended by then runs on, and the rest is moved when that time comes.
    """
    require(principal, Action.FLEET_MANAGE, firm_id=None)
    async with db.transaction() as tx:
        row = await fleet.cordon(tx, node_id, body.reason, drain=body.drain and body.finish_by is None, now=now)
        if body.drain and body.finish_by is not None:
            await kept_times.drain_from(tx, node_id, body.finish_by, body.reason, by=principal, now=now)
        await audit.record(tx, "node.cordon", node_id, by=principal, now=now, reason=body.reason, after=_state(row))
        return NodeOut.model_validate(row)


@router.post("/nodes/{node_id}/uncordon")
async def uncordon(node_id: str, principal: CurrentPrincipal, db: Db, now: Now) -> NodeOut:
    """Open a node again."""
    require(principal, Action.FLEET_MANAGE, firm_id=None)
    async with db.transaction() as tx:
        row = await fleet.uncordon(tx, node_id, now=now)
        await kept_times.lift_drain(tx, node_id, now=now)
        await audit.record(tx, "node.uncordon", node_id, by=principal, now=now, after=_state(row))
        return NodeOut.model_validate(row)


@router.get("/pools")
async def list_pools(principal: CurrentPrincipal, db: Db, now: Now) -> list[PoolOut]:
    """Pools with what is up and placed, and the caller's own quota in each."""
    require(principal, Action.FLEET_READ, firm_id=None)
    firm = home_firm(principal)
    async with db.transaction() as tx:
        pools, rows = await store.pools(tx), await store.nodes(tx)
        nominal, used = await quota_nominal(tx, at=now), await store.quota_used(tx)
    up = {pool.name: [row for row in rows if row.pool == pool.name and row.state == NodeState.READY] for pool in pools}
    return [
        PoolOut(
            name=pool.name,
            centre=pool.centre,
            accelerator=pool.accelerator,
            nodes=len(up[pool.name]),
            gpu_milli=sum(row.gpu_milli for row in up[pool.name]),
            placed_milli=sum(row.placed_milli for row in up[pool.name]),
            quota_milli=nominal.get((FirmId(firm), PoolName(pool.name))),
            used_milli=used.get((FirmId(firm), PoolName(pool.name)), 0),
        )
        for pool in pools
    ]


@router.get("/queue")
async def queue(principal: CurrentPrincipal, db: Db, now: Now, edge: EdgeOf) -> QueueOut:
    """Who waits, in order, with the reason for each; a firm sees its own entries and how many there are in all."""
    firm = None if is_staff(principal) else home_firm(principal)
    require(principal, Action.QUEUE_READ, firm_id=firm)
    async with db.transaction() as tx:
        places = await explain.queue(tx, edge.terms, now=now)
        running = len(await store.live_attempts(tx))
    mine = [place for place in places if _sees(principal, place.workload.firm_id)]
    return QueueOut(waiting=len(places), running=running, entries=[place_out(place) for place in mine])


def _sees(principal: Principal, firm_id: str) -> bool:
    return is_staff(principal) or firm_id == principal.firm_id


def _state(row: NodeRow) -> dict[str, object]:
    return {"cordon_reason": row.cordon_reason, "draining": row.draining}
