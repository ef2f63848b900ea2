"""Who is calling, and the secrets they prove it with. Nothing here knows what anybody may do."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

_HASHER = PasswordHasher()  # argon2id, RFC 9106's second recommended option


class PrincipalKind(StrEnum):
    """What kind of caller."""

    MEMBER = "member"
    API_KEY = "api_key"
    WORKLOAD = "workload"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling: `firm_id` is None for the platform's own staff; `scopes` bound what a key may do."""

    kind: PrincipalKind
    id: str
    firm_id: str | None
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    project_id: str | None = None


SYSTEM = Principal(PrincipalKind.SYSTEM, "system", None)
"""The platform acting on its own: sweeper, controller, migrations."""


def new_secret() -> str:
    """256 random bits, URL-safe."""
    return secrets.token_urlsafe(32)


def hash_secret(secret: str) -> bytes:
    """SHA-256 of a random secret. Only for secrets of full entropy; passwords go through `hash_password`."""
    return hashlib.sha256(secret.encode()).digest()


def same_secret(secret: str, stored: bytes) -> bool:
    """Whether `secret` hashes to `stored`, in constant time."""
    return hmac.compare_digest(hash_secret(secret), stored)


def hash_password(password: str) -> str:
    """argon2id hash with its parameters and salt. Takes tens of milliseconds on purpose: call it in a thread."""
    return _HASHER.hash(password)


def verify_password(password: str, stored: str) -> bool:
    """Whether `password` made `stored`. As slow as hashing, also for a malformed `stored`."""
    try:
        return _HASHER.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


def sign(key: bytes, message: str) -> str:
    """HMAC-SHA-256 of `message`, hexadecimal."""
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()


def signature_holds(key: bytes, message: str, signature: str) -> bool:
    """Whether `signature` is `sign(key, message)`, in constant time."""
    return hmac.compare_digest(sign(key, message), signature)
