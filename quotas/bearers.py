"""The secrets people and programs carry: how they are written, and what is kept of them (a hash, never the secret)."""

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from kit.auth import hash_secret, new_secret
from kit.errors import InvalidInput
from quotas.vocabulary import KeyId

SESSION_PREFIX = "hs_"
KEY_PREFIX = "hl_"
_KEY_ID_PREFIX = "key_"


@dataclass(frozen=True, slots=True)
class Minted:
    """A new secret: `token` is shown once, `token_hash` is kept."""

    token: str
    token_hash: bytes


def mint(prefix: str = "") -> Minted:
    """A token of 256 random bits behind `prefix`; the hash is of the whole token."""
    token = f"{prefix}{new_secret()}"
    return Minted(token, hash_secret(token))


def mint_key(key_id: KeyId) -> Minted:
    """`hl_<id>_<secret>` for a key; the hash is of the secret part alone."""
    secret = new_secret()
    return Minted(f"{KEY_PREFIX}{key_id.removeprefix(_KEY_ID_PREFIX)}_{secret}", hash_secret(secret))


def parse_key(bearer: str) -> tuple[KeyId, str] | None:
    """The id and the secret of an API key, or None for anything else."""
    prefix, _, rest = bearer.partition("_")
    short_id, _, secret = rest.partition("_")
    if f"{prefix}_" != KEY_PREFIX or not short_id or not secret:
        return None
    return KeyId(f"{_KEY_ID_PREFIX}{short_id}"), secret


def key_of(principal_id: str) -> KeyId | None:
    """The API key that a principal's id names; None for whoever is no key."""
    return KeyId(principal_id) if principal_id.startswith(_KEY_ID_PREFIX) else None


def valid_ranges(ranges: tuple[str, ...]) -> tuple[str, ...]:
    """`ranges` as CIDR networks in their usual form. Raises InvalidInput (`ip_range`) naming the bad one."""
    try:
        return tuple(str(ip_network(one)) for one in ranges)
    except ValueError as error:
        raise InvalidInput(
            f"{error}; an IP range is written as 203.0.113.0/24 or 2001:db8::/32.", code="ip_range"
        ) from None


def ip_allowed(ranges: tuple[str, ...] | None, ip: str | None) -> bool:
    """Whether a call from `ip` is inside `ranges`; without ranges every address is, without an address none is."""
    if ranges is None:
        return True
    try:
        address = ip_address(ip or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in ip_network(one) for one in ranges)
