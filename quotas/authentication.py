"""From a bearer to the one who carries it. What they may do is `quotas.access`'s question."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import Principal, PrincipalKind, hash_secret, same_secret
from kit.errors import Forbidden, Unauthenticated
from quotas.adapters import people_store as store
from quotas.adapters.tables import ApiKeyRow, FirmRow
from quotas.applications import refuse_unless_active
from quotas.bearers import SESSION_PREFIX, ip_allowed, parse_key
from quotas.vocabulary import PLATFORM_FIRM, FirmId, FirmState, KeyGrant, KeyId, ProjectId, Scope

LAST_USED_COARSE = timedelta(minutes=10)
"""A key's last use is written at most this often: no write per request."""


async def authenticate(
    tx: AsyncSession, bearer: str, *, now: datetime, ip: str | None = None, inactive_ok: bool = False
) -> Principal:
    """Who carries this session token or API key.

    Raises Unauthenticated (one message for unknown, expired and revoked), Forbidden for a firm that is not active
    (unless `inactive_ok`) and for an address outside the key's ranges.
    """
    if bearer.startswith(SESSION_PREFIX):
        return await _member(tx, bearer, now=now, inactive_ok=inactive_ok)
    grant = await load_key(tx, bearer, now=now)
    if not ip_allowed(grant.ip_ranges, ip):
        raise Forbidden(
            f"This key may not be used from {ip or 'an unknown address'}.",
            code="ip_not_allowed",
            hint=f"Allowed: {', '.join(grant.ip_ranges or ())}.",
        )
    return principal_of(grant)


async def load_key(tx: AsyncSession, bearer: str, *, now: datetime) -> KeyGrant:
    """What this API key allows, for a gateway to keep; the caller checks `ip_ranges`.

    Raises Unauthenticated, or Forbidden for a firm that is not active.
    """
    parsed = parse_key(bearer)
    found = await store.key_with_firm(tx, parsed[0]) if parsed else None
    if parsed is None or found is None or not same_secret(parsed[1], found[0].secret_hash):
        raise _nobody()
    key, firm = found
    grant = _grant(key, firm)
    if key.revoked_at is not None and firm.state != FirmState.ACTIVE:
        refuse_unless_active(firm)
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise _nobody()
    refuse_unless_active(firm)
    if key.last_used_at is None or key.last_used_at < now - LAST_USED_COARSE:
        await store.touch_key(tx, key.id, now=now, coarse=LAST_USED_COARSE)
    return grant


async def key_limits(tx: AsyncSession, key_id: KeyId) -> KeyGrant | None:
    """What a key allows now, revoked and expired ones included (see `KeyGrant.usable`); None when there is none."""
    found = await store.key_with_firm(tx, key_id)
    return _grant(*found) if found else None


async def keys_limits(tx: AsyncSession, key_ids: Sequence[KeyId]) -> list[KeyGrant]:
    """The same of several keys, those that there are, in one query."""
    return [_grant(key, firm) for key, firm in await store.keys_with_firms(tx, key_ids)]


async def keys_over(tx: AsyncSession, key_ids: Sequence[KeyId], *, now: datetime) -> set[KeyId]:
    """Those of these keys that open nothing: revoked, expired, of a firm that is not active; in one query."""
    return {KeyId(key_id) for key_id in await store.keys_over(tx, key_ids, now=now)}


def principal_of(grant: KeyGrant) -> Principal:
    """The principal that a key stands for."""
    return Principal(
        PrincipalKind.API_KEY,
        grant.key_id,
        grant.firm_id,
        scopes=frozenset(scope.value for scope in grant.scopes),
        project_id=grant.project_id,
    )


async def _member(tx: AsyncSession, bearer: str, *, now: datetime, inactive_ok: bool) -> Principal:
    found = await store.session_of(tx, hash_secret(bearer))
    if found is None:
        raise _nobody()
    session, member, firm = found
    if session.ended_at is not None or session.expires_at <= now:
        raise _nobody()
    if not inactive_ok:
        refuse_unless_active(firm)
    if member.state != "active" and firm.state == FirmState.ACTIVE:
        raise _nobody()
    own_firm = None if firm.id == PLATFORM_FIRM else firm.id
    return Principal(PrincipalKind.MEMBER, member.id, own_firm, roles=frozenset(member.roles))


def _grant(key: ApiKeyRow, firm: FirmRow) -> KeyGrant:
    return KeyGrant(
        key_id=KeyId(key.id),
        firm_id=FirmId(key.firm_id),
        project_id=ProjectId(key.project_id),
        scopes=frozenset(Scope(scope) for scope in key.scopes),
        models=frozenset(key.models) if key.models is not None else None,
        ip_ranges=tuple(key.ip_ranges) if key.ip_ranges is not None else None,
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        requests_at_once=key.requests_at_once,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        firm_state=FirmState(firm.state),
    )


def _nobody() -> Unauthenticated:
    return Unauthenticated(
        "This session or key is unknown, expired or revoked.", hint="Sign in again (heliu login), or use another key."
    )
