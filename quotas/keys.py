"""API keys: issued once, listed without their secret, rotated with an overlap, revoked everywhere within seconds."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.db import notify
from kit.errors import Conflict, InvalidInput, NotFound
from kit.ids import new_id
from quotas import audit
from quotas.access import PLATFORM_SCOPES
from quotas.adapters import people_store as store
from quotas.adapters.tables import ApiKeyRow
from quotas.applications import require_active
from quotas.bearers import mint_key, valid_ranges
from quotas.projects import project_of
from quotas.vocabulary import KEYS_CHANNEL, PLATFORM_FIRM, FirmId, KeyId, ProjectId, Scope

OVERLAP_MAX = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What a key shall allow. None means: no limit of its own."""

    name: str
    scopes: frozenset[Scope]
    project_id: ProjectId | None = None
    models: tuple[str, ...] | None = None
    ip_ranges: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_at_once: int | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A key that was just made; `token` is shown once."""

    token: str
    key: ApiKeyRow


async def issue_key(
    tx: AsyncSession, firm_id: FirmId, spec: KeySpec, *, by: Principal, now: datetime, origin: str | None = None
) -> Issued:
    """Make a key. Raises Forbidden (firm not active), NotFound (project), InvalidInput (expiry, IP range, scopes)."""
    await require_active(tx, firm_id)
    project = await project_of(tx, spec.project_id, firm_id)
    if spec.expires_at is not None and spec.expires_at <= now:
        raise InvalidInput(
            "A key must expire in the future.",
            code="expiry_past",
            hint="give a later time, or none: then it does not expire",
        )
    if not spec.scopes:
        raise InvalidInput(
            "A key needs at least one scope.", code="scope_missing", hint=f"one or more of {', '.join(Scope)}"
        )
    if firm_id != PLATFORM_FIRM and (foreign := spec.scopes & PLATFORM_SCOPES):
        raise InvalidInput(
            f"Only the platform's own keys may have the scope {', '.join(sorted(foreign))}.",
            code="scope_of_platform",
            hint="an administrator issues such a key for the machine that reports usage",
        )
    key_id = KeyId(new_id("key"))
    minted = mint_key(key_id)
    row = ApiKeyRow(
        id=key_id,
        firm_id=firm_id,
        project_id=project.id,
        name=spec.name,
        secret_hash=minted.token_hash,
        scopes=sorted(spec.scopes),
        models=sorted(set(spec.models)) if spec.models is not None else None,
        ip_ranges=list(valid_ranges(spec.ip_ranges)) if spec.ip_ranges is not None else None,
        requests_per_minute=spec.requests_per_minute,
        tokens_per_minute=spec.tokens_per_minute,
        requests_at_once=spec.requests_at_once,
        created_by=by.id,
        created_at=now,
        expires_at=spec.expires_at,
        line_id=key_id,
    )
    await _record_issue(tx, row, by=by, now=now, origin=origin, after=asdict(spec))
    return Issued(minted.token, row)


async def list_keys(tx: AsyncSession, firm_id: FirmId) -> Sequence[ApiKeyRow]:
    """A firm's keys, newest first; revoked and expired ones too."""
    return await store.keys(tx, firm_id)


async def firms_of_keys(tx: AsyncSession, key_ids: Collection[KeyId]) -> dict[KeyId, FirmId]:
    """Whose these keys are, revoked and expired ones too; one that does not exist is missing."""
    return {KeyId(key): FirmId(firm) for key, firm in await store.firms_of_keys(tx, key_ids)} if key_ids else {}


async def key_row(tx: AsyncSession, key_id: KeyId) -> ApiKeyRow:
    """The key, locked. Raises NotFound."""
    row = await store.lock_key(tx, key_id)
    if row is None:
        raise key_not_found(key_id)
    return row


async def revoke_key(
    tx: AsyncSession, row: ApiKeyRow, *, by: Principal, now: datetime, why: str = "revoked", origin: str | None = None
) -> ApiKeyRow:
    """Stop a key; every gateway hears of it when this commits. Twice has no further effect."""
    if row.revoked_at is None:
        row.revoked_at, row.revoked_why = now, why
        await notify(tx, KEYS_CHANNEL, row.id)
        await audit.record(tx, "key.revoke", row.id, by=by, now=now, firm_id=row.firm_id, origin=origin, reason=why)
        await events.append(tx, "key.revoked", row.id, {"why": why}, now=now, firm_id=row.firm_id)
    return row


async def rotate_key(
    tx: AsyncSession,
    row: ApiKeyRow,
    *,
    overlap: timedelta,
    by: Principal,
    now: datetime,
    origin: str | None = None,
) -> Issued:
    """A new key like this one; this one goes on for `overlap` (at most 30 days), or stops at once for zero.

    Raises Conflict for a key that is revoked, expired or rotated already, InvalidInput for the overlap.
    """
    if not timedelta(0) <= overlap <= OVERLAP_MAX:
        raise InvalidInput(f"The overlap is between 0 and {OVERLAP_MAX.days} days.", code="overlap_range")
    await require_active(tx, FirmId(row.firm_id))
    over = row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now)
    if over or row.replaced_by is not None:
        raise Conflict("This key is revoked, expired or replaced already.", code="key_over", hint="Issue a new key.")
    key_id = KeyId(new_id("key"))
    minted = mint_key(key_id)
    successor = ApiKeyRow(
        **row.model_dump(exclude={"id", "secret_hash", "created_by", "created_at", "last_used_at"}),
        id=key_id,
        secret_hash=minted.token_hash,
        created_by=by.id,
        created_at=now,
    )
    await _record_issue(tx, successor, by=by, now=now, origin=origin, after={"replaces": row.id, "name": row.name})
    row.replaced_by = successor.id
    if overlap:
        row.expires_at = min(row.expires_at or now + overlap, now + overlap)
        await notify(tx, KEYS_CHANNEL, row.id)
    else:
        await revoke_key(tx, row, by=by, now=now, why="rotated", origin=origin)
    return Issued(minted.token, successor)


def key_not_found(key_id: str) -> NotFound:
    """The one answer for a key that does not exist and for another firm's."""
    return NotFound(f"There is no key {key_id}.", code="key_not_found", hint="see: heliu key list")


async def _record_issue(
    tx: AsyncSession, row: ApiKeyRow, *, by: Principal, now: datetime, origin: str | None, after: dict[str, object]
) -> None:
    await store.insert(tx, row)
    await notify(tx, KEYS_CHANNEL, row.id)
    await audit.record(tx, "key.issue", row.id, by=by, now=now, firm_id=row.firm_id, origin=origin, after=after)
    await events.append(tx, "key.issued", row.id, {"name": row.name}, now=now, firm_id=row.firm_id)
