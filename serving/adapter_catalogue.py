"""Adapters: registered from finished fine-tune jobs, owned by one firm, invisible to every other."""

from dataclasses import dataclass
from datetime import datetime
from json import dumps

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import SYSTEM, Principal
from kit.blobs import Blobs
from kit.db import Database, notify
from kit.errors import Conflict, NotFound
from kit.ids import new_id
from quotas.api import audit
from scheduler import api as scheduler
from scheduler.vocabulary import ArtifactView
from serving import adapter_files
from serving.adapter_files import CONFIG_FILE, WEIGHTS_FILE, AdapterFiles, BadAdapter
from serving.adapters import store
from serving.adapters.tables import AdapterRow, ModelRow
from serving.naming import SLUG_RULE, is_slug
from serving.vocabulary import REPLICAS_CHANNEL, Adapter, AdapterState

NO_HASH = "0" * 64
RECIPE = "lora-finetune"  # only platform code makes adapters: what a script left under these names is not one


@dataclass(frozen=True, slots=True)
class Training:
    """A finished fine-tune: what it says it made, and the two files it left."""

    job_id: str
    firm_id: str
    project_id: str
    adapter_name: str
    base_model: str
    config: ArtifactView | None
    weights: ArtifactView | None


async def register_from_job(
    db: Database, blobs: Blobs, job_id: str, *, now: datetime, name: str | None = None, by: Principal = SYSTEM
) -> Adapter | None:
    """The adapter that came of a job; registering it again returns the one that stands. None: the job made no adapter.

    An adapter that cannot be served is kept as `refused`, with the reason. `name` gives a refused one another name.
    """
    async with db.transaction() as tx:
        standing = await store.adapter_of_job(tx, job_id)
        if standing is not None and (name is None or standing.state != AdapterState.REFUSED):
            return store.adapter_of(standing)
        training = await _training(tx, job_id, name=name)
        model = await store.model(tx, training.base_model) if training else None
    if training is None:
        return None
    verdict = await _check(db, blobs, training, model)
    return await db.retrying(lambda tx: _record(tx, training, model, verdict, now=now, by=by))


async def retire(tx: AsyncSession, adapter_id: str, *, by: Principal, now: datetime) -> Adapter:
    """Delete an adapter: routed to no more from now on, unloaded by the replicas, then gone. Again: no effect."""
    row = await store.adapter(tx, adapter_id, lock=True)
    if row is None:
        raise not_found(adapter_id)
    if row.state in (AdapterState.ACTIVE, AdapterState.REFUSED):
        row.state = AdapterState.RETIRING if row.state == AdapterState.ACTIVE else AdapterState.DELETED
        row.retired_at = now
        await tx.flush()
        await audit.record(tx, "adapter.delete", row.id, by=by, now=now, firm_id=row.firm_id, before={"name": row.name})
        await events.append(tx, "adapter.retired", row.id, {"name": row.name}, now=now, firm_id=row.firm_id)
        await notify(tx, REPLICAS_CHANNEL, "*")
    return store.adapter_of(row)


async def finish_retirements(tx: AsyncSession, *, now: datetime) -> list[str]:
    """Adapters being deleted that no replica has any more are gone; returns their ids. Their names are free again."""
    gone: list[str] = []
    for row in await store.adapters(tx, states=(AdapterState.RETIRING,)):
        if await store.loaded_anywhere(tx, row.id):
            continue
        row.state = AdapterState.DELETED
        await events.append(tx, "adapter.deleted", row.id, {"name": row.name}, now=now, firm_id=row.firm_id)
        gone.append(row.id)
    return gone


async def list_adapters(tx: AsyncSession, firm_id: str | None) -> list[Adapter]:
    """A firm's adapters that are not deleted, refused ones included; None: every firm's."""
    states = (AdapterState.ACTIVE, AdapterState.RETIRING, AdapterState.REFUSED)
    return [store.adapter_of(row) for row in await store.adapters(tx, firm_id=firm_id, states=states)]


async def get_adapter(tx: AsyncSession, adapter: str, *, firm_id: str | None) -> Adapter:
    """By id, or by name within `firm_id`. Raises NotFound; whose it is, the caller checks."""
    row = await store.adapter(tx, adapter)
    if row is None and firm_id is not None:
        row = await store.adapter_named(tx, firm_id, adapter)
    if row is None or row.state == AdapterState.DELETED:
        raise not_found(adapter)
    return store.adapter_of(row)


def not_found(adapter: str) -> NotFound:
    """The one answer for an adapter that does not exist and for one that is another firm's."""
    return NotFound(f"there is no adapter {adapter}", code="adapter_not_found", hint="see: heliu adapter list")


async def _training(tx: AsyncSession, job_id: str, *, name: str | None) -> Training | None:
    made = [artifact for artifact in await scheduler.artifacts_of(tx, job_id) if artifact.kind == "adapter"]
    if not made:
        return None
    first = made[0]
    stored = await events.read(tx, topics=["artifact.stored"], subject=first.id, limit=1)
    if not stored or stored[0].body.get("recipe") != RECIPE:
        return None
    by_name = {artifact.name.rsplit("/", 1)[-1]: artifact for artifact in made}
    weights = by_name.get(WEIGHTS_FILE)
    meta = (weights or first).meta
    return Training(
        job_id=job_id,
        firm_id=first.firm_id,
        project_id=first.project_id,
        adapter_name=name or str(meta.get("adapter_name", "")),
        base_model=str(meta.get("base_model", "")),
        config=by_name.get(CONFIG_FILE),
        weights=weights,
    )


async def _check(db: Database, blobs: Blobs, training: Training, model: ModelRow | None) -> AdapterFiles | BadAdapter:
    """The verdict on the files. Reads the config and the head of the weights, never the weights themselves."""
    if training.config is None or training.weights is None:
        return BadAdapter(f"the job left no {CONFIG_FILE} and {WEIGHTS_FILE}", code="adapter_incomplete")
    if model is None:
        return BadAdapter(f"there is no base model {training.base_model[:80]!r}", code="adapter_wrong_base")
    if model.max_loras == 0:
        return BadAdapter(f"the model {model.name} takes no adapters", code="adapter_wrong_base")
    total = training.weights.size_bytes
    try:
        config = await _head(db, blobs, training.config, adapter_files.CONFIG_BYTES_MAX + 1)
        first8 = await _head(db, blobs, training.weights, 8)
        length = adapter_files.header_bytes(first8, total_bytes=total)
        head = await _head(db, blobs, training.weights, 8 + length)
        return adapter_files.check(config, head, weights_bytes=total, base_model=model.name)
    except BadAdapter as refusal:
        return refusal
    except NotFound:
        return BadAdapter("the adapter's files are not in the object store any more", code="adapter_incomplete")


async def _head(db: Database, blobs: Blobs, artifact: ArtifactView, length: int) -> bytes:
    """Its first `length` bytes, fewer when it is shorter."""
    _, chunks = await scheduler.open_artifact(db, blobs, artifact.id, firm_id=artifact.firm_id)
    head = bytearray()
    async for chunk in chunks:
        head += chunk[: length - len(head)]
        if len(head) >= length:
            break
    return bytes(head)


async def _record(
    tx: AsyncSession,
    training: Training,
    model: ModelRow | None,
    verdict: AdapterFiles | BadAdapter,
    *,
    now: datetime,
    by: Principal,
) -> Adapter:
    await store.lock_name(tx, training.adapter_name)
    standing = await store.adapter_of_job(tx, training.job_id)
    if standing is not None and standing.state != AdapterState.REFUSED:
        return store.adapter_of(standing)
    if isinstance(verdict, AdapterFiles):
        refusal = await _name_refusal(tx, training)
        verdict = refusal or verdict
    if isinstance(verdict, BadAdapter) and by is not SYSTEM:
        raise verdict if verdict.code != "adapter_name_taken" else Conflict(verdict.message, code=verdict.code)
    if standing is not None:
        standing.state, standing.retired_at = AdapterState.DELETED, now
        await tx.flush()
    row = _row(training, model, verdict, now=now)
    tx.add(row)
    await tx.flush()
    topic = "adapter.registered" if row.state == AdapterState.ACTIVE else "adapter.refused"
    body = {"name": row.name, "base_model": row.base_model, "job_id": row.job_id, "reason": row.reason}
    await events.append(tx, topic, row.id, body, now=now, firm_id=row.firm_id)
    await audit.record(tx, topic, row.id, by=by, now=now, firm_id=row.firm_id, after=body)
    await notify(tx, REPLICAS_CHANNEL, "*")
    return store.adapter_of(row)


async def _name_refusal(tx: AsyncSession, training: Training) -> BadAdapter | None:
    name = training.adapter_name
    if not is_slug(name):
        return BadAdapter(f"{name[:80]!r} cannot be an adapter's name; it takes {SLUG_RULE}", code="adapter_name")
    if await store.model(tx, name) is not None or await store.adapter_named(tx, training.firm_id, name) is not None:
        return BadAdapter(
            f"the name {name} is taken by a base model or by another of your adapters",
            code="adapter_name_taken",
            hint="register it under another name: heliu adapter register",
        )
    return None


def _row(
    training: Training, model: ModelRow | None, verdict: AdapterFiles | BadAdapter, *, now: datetime
) -> AdapterRow:
    accepted = verdict if isinstance(verdict, AdapterFiles) else None
    weights = training.weights
    return AdapterRow(
        id=new_id("adp"),
        name=training.adapter_name[:200],
        firm_id=training.firm_id,
        project_id=training.project_id,
        base_model=model.name if model else None,
        base_revision=model.revision if model else "",
        rank=accepted.rank if accepted else 0,
        sha256=weights.sha256 if weights else NO_HASH,
        size_bytes=weights.size_bytes if weights else 0,
        job_id=training.job_id,
        weights_artifact=weights.id if weights else None,
        config=dumps(dict(accepted.config), sort_keys=True).encode() if accepted else None,
        state=(AdapterState.ACTIVE if accepted else AdapterState.REFUSED).value,
        reason=None if isinstance(verdict, AdapterFiles) else verdict.message,
        created_at=now,
    )
