"""Base models: registered by the platform, the same for every firm."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from kit import events
from kit.auth import Principal
from kit.db import notify
from kit.errors import Conflict, InvalidInput, NotFound
from quotas.api import audit
from serving import engine_arguments
from serving.adapters import store
from serving.adapters.tables import DeploymentRow, ModelRow
from serving.naming import SLUG_RULE, is_slug
from serving.vocabulary import REPLICAS_CHANNEL, Capability, DeploymentState, Modality, Model

NEEDS_NEW_ENGINE = frozenset({"source", "revision", "engine_arguments", "gpu_milli", "max_loras", "context_tokens"})
CHANGEABLE = NEEDS_NEW_ENGINE | {
    "display_name", "owner", "licence", "filing_number", "capabilities", "deprecated_at", "retires_at",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A catalogue entry as it is asked for."""

    name: str
    display_name: str
    owner: str
    licence: str
    modality: Modality
    context_tokens: int
    capabilities: frozenset[Capability]
    source: str
    revision: str
    engine_arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    gpu_milli: int = 1000
    max_loras: int = 0
    filing_number: str | None = None


async def register_model(tx: AsyncSession, spec: ModelSpec, *, by: Principal, now: datetime) -> Model:
    """Add a base model; the same entry again is the entry that stands.

    Raises Conflict when the name is taken, InvalidInput for engine arguments or capabilities that cannot be.
    """
    values = _values(spec)
    if not is_slug(spec.name):
        raise InvalidInput(f"{spec.name[:80]!r} cannot be a model's name; it takes {SLUG_RULE}", code="model_name")
    await store.lock_name(tx, spec.name)
    if standing := await store.model(tx, spec.name):
        if all(getattr(standing, key) == value for key, value in values.items()):
            return store.model_of(standing)
        raise Conflict(
            f"a model named {spec.name} is already in the catalogue",
            code="model_name_taken",
            hint="see: heliu model list; take another name",
        )
    if await store.name_is_an_adapters(tx, spec.name):
        raise Conflict(f"the name {spec.name} is in use", code="model_name_taken", hint="choose another name")
    row = ModelRow(**values, created_at=now)
    tx.add(row)
    await tx.flush()
    await audit.record(tx, "model.register", spec.name, by=by, now=now, after=values)
    await events.append(tx, "model.registered", spec.name, {"revision": spec.revision}, now=now)
    await notify(tx, REPLICAS_CHANNEL, "*")
    return store.model_of(row)


async def change_model(tx: AsyncSession, name: str, changes: dict[str, Any], *, by: Principal, now: datetime) -> Model:
    """Change a catalogue entry; what concerns the engine replaces the replicas of its deployments one by one.

    Raises NotFound, and InvalidInput as `register_model` does.
    """
    assert set(changes) <= CHANGEABLE, "the name and the modality of a model never change"
    row = await _model_row(tx, name)
    before = {key: getattr(row, key) for key in changes}
    current = store.model_of(row)
    spec = ModelSpec(
        **{
            key: changes.get(key, getattr(current, key))
            for key in ModelSpec.__dataclass_fields__  # the same words in the row, the value and the spec
        }
    )
    for key, value in _values(spec).items():
        setattr(row, key, value)
    for key in ("deprecated_at", "retires_at"):
        if key in changes:
            setattr(row, key, changes[key])
    if row.retires_at and row.retires_at < (row.deprecated_at or now):
        raise InvalidInput(
            "a model retires after it is deprecated", code="model_retires_too_early", hint="give a later retires_at"
        )
    if any(getattr(row, key) != before[key] for key in NEEDS_NEW_ENGINE & set(changes)):
        await _renew_deployments(tx, name, now=now)
    await tx.flush()
    await audit.record(tx, "model.change", name, by=by, now=now, before=before, after=changes)
    await events.append(tx, "model.changed", name, {"fields": sorted(changes)}, now=now)
    await notify(tx, REPLICAS_CHANNEL, "*")
    return store.model_of(row)


async def list_models(tx: AsyncSession) -> list[Model]:
    """Every base model, by name."""
    return [store.model_of(row) for row in await store.models(tx)]


async def get_model(tx: AsyncSession, name: str) -> Model:
    """The base model of this name. Raises NotFound."""
    return store.model_of(await _model_row(tx, name))


async def _model_row(tx: AsyncSession, name: str) -> ModelRow:
    row = await store.model(tx, name)
    if row is None:
        raise NotFound(f"there is no model {name}", code="model_not_found", hint="list them: heliu model list")
    return row


async def _renew_deployments(tx: AsyncSession, name: str, *, now: datetime) -> None:
    await tx.execute(
        update(DeploymentRow)
        .where(col(DeploymentRow.model) == name, col(DeploymentRow.state) == DeploymentState.ACTIVE.value)
        .values(generation=col(DeploymentRow.generation) + 1, changed_at=now)
    )


def _values(spec: ModelSpec) -> dict[str, Any]:
    """The row's values, checked."""
    capabilities = {Capability(c) for c in spec.capabilities}
    if (Capability.VISION in capabilities) != (spec.modality is Modality.IMAGE_TEXT):
        raise InvalidInput("vision goes with the modality image_text, and only with it", code="model_capabilities")
    if (Capability.EMBEDDINGS in capabilities) != (spec.modality is Modality.EMBEDDING):
        raise InvalidInput("embeddings go with the modality embedding, and only with it", code="model_capabilities")
    if spec.modality is Modality.EMBEDDING and (len(capabilities) > 1 or spec.max_loras):
        raise InvalidInput("an embedding model neither chats nor takes adapters", code="model_capabilities")
    arguments = engine_arguments.checked(spec.engine_arguments)
    length = arguments.get("max_model_len", spec.context_tokens)
    if length != spec.context_tokens:
        raise InvalidInput(
            f"max_model_len is {length} but context_tokens is {spec.context_tokens}; they must agree",
            code="model_context",
        )
    return {
        "name": spec.name,
        "display_name": spec.display_name,
        "owner": spec.owner,
        "licence": spec.licence,
        "filing_number": spec.filing_number,
        "modality": spec.modality.value,
        "context_tokens": spec.context_tokens,
        "capabilities": sorted(c.value for c in capabilities),
        "source": spec.source,
        "revision": spec.revision,
        "engine_arguments": arguments,
        "gpu_milli": spec.gpu_milli,
        "max_loras": spec.max_loras,
    }
