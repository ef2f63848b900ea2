"""Firms, members, sessions, keys and quotas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heliu.client.people_views import Firm, Invited, IssuedKey, Key, Me, Project, Quota, Session
from heliu.client.transport import Transport


@dataclass(frozen=True, slots=True)
class Sessions:
    """Who we are."""

    _transport: Transport

    def sign_in(self, email: str, password: str) -> Session:
        """Begin a session; use its token with `Client.acting_as`."""
        return Session(**self._transport.json("POST", "/api/sessions", body={"email": email, "password": password}))

    def claim_administrator(self, token: str, *, email: str, name: str, password: str) -> Session:
        """Use the one-time link that `heliu up` printed."""
        body = {"token": token, "email": email, "name": name, "password": password}
        return Session(**self._transport.json("POST", "/api/admin/claim", body=body))

    def me(self) -> Me:
        """Who is calling, for which firm."""
        return Me(**self._transport.json("GET", "/api/me"))


@dataclass(frozen=True, slots=True)
class Firms:
    """Applications and reviews."""

    _transport: Transport

    def apply(self, **application: Any) -> Firm:
        """Apply: uscc, name, industry_cluster, district, contact_*, owner_name, owner_email, owner_password."""
        return Firm(**self._transport.json("POST", "/api/firms", body=application))

    def get(self, firm_id: str) -> Firm:
        """One firm."""
        return Firm(**self._transport.json("GET", f"/api/firms/{firm_id}"))

    def review(self, firm_id: str, step: str, *, reason: str | None = None) -> Firm:
        """Take a firm one step: take, approve, reject, suspend, resume, close."""
        body = {"step": step, "reason": reason}
        return Firm(**self._transport.json("POST", f"/api/firms/{firm_id}/review", body=body))

    def list(self, *, states: Sequence[str] = ()) -> list[Firm]:
        """Firms in the order they applied."""
        return [Firm(**row) for row in self._transport.json("GET", "/api/firms", query={"state": list(states)})]


@dataclass(frozen=True, slots=True)
class Members:
    """Invitations."""

    _transport: Transport

    def invite(self, email: str, roles: Sequence[str], *, firm_id: str | None = None) -> Invited:
        """Offer somebody a place in the firm."""
        body = {"firm_id": firm_id, "email": email, "roles": list(roles)}
        return Invited(**self._transport.json("POST", "/api/invitations", body=body))

    def accept(self, token: str, *, name: str, password: str) -> Session:
        """Take an offered place."""
        body = {"token": token, "name": name, "password": password}
        return Session(**self._transport.json("POST", "/api/invitations/accept", body=body))


@dataclass(frozen=True, slots=True)
class Keys:
    """API keys and projects."""

    _transport: Transport

    def issue(self, name: str, scopes: Sequence[str], **limits: Any) -> IssuedKey:
        """Make a key; `limits` are what POST /api/keys takes beside the name and scopes, in its words."""
        body = {"name": name, "scopes": list(scopes), **limits}
        return IssuedKey(**self._transport.json("POST", "/api/keys", body=body))

    def revoke(self, key_id: str, *, reason: str = "revoked") -> Key:
        """Stop a key everywhere."""
        return Key(**self._transport.json("POST", f"/api/keys/{key_id}/revoke", body={"reason": reason}))

    def projects(self) -> list[Project]:
        """The firm's projects."""
        return [Project(**row) for row in self._transport.json("GET", "/api/projects")]

    def list(self) -> list[Key]:
        """The firm's keys, never their secrets."""
        return [Key(**row) for row in self._transport.json("GET", "/api/keys")]


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a firm may use of a pool."""

    _transport: Transport

    def set(self, firm_id: str, pool: str, nominal_gpu_milli: int, *, reason: str | None = None) -> Quota:
        """Set it, from now on."""
        body = {"firm_id": firm_id, "pool": pool, "nominal_gpu_milli": nominal_gpu_milli, "reason": reason}
        return Quota(**self._transport.json("POST", "/api/quotas", body=body))

    def list(self, firm_id: str | None = None) -> list[Quota]:
        """Quotas in force now."""
        return [Quota(**row) for row in self._transport.json("GET", "/api/quotas", query={"firm_id": firm_id})]
