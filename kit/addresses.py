"""Which addresses this platform may call when a customer names them: those of the public internet, and what is allowed.

Pure rules. `kit.fetch` applies them to the address it then connects to.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, urlsplit

from kit.errors import InvalidInput

ANYWHERE: Final = ("0.0.0.0/0", "::/0")
"""Networks for an installation that may call its own network too."""

_SPECIAL: Final = tuple(map(ip_network, ("168.63.129.16/32", "192.0.0.0/24", "64:ff9b:1::/48")))
"""Clouds' own services and local translators, at addresses that Python may take for public ones."""
_NAT64: Final = ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ip_network("::/96")


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, and so is each IPv4 address written inside it.

    Raises ValueError for what is no address.
    """
    parsed = ip_address(address.partition("%")[0])
    return all(_is_public(one) for one in (parsed, *_inside(parsed)))


def check_address(address: str, *, allowed: Iterable[str] = ()) -> str:
    """`address` if it may be called: it is public, or in one of the `allowed` networks (CIDR).

    Raises InvalidInput (`address_private`), ValueError for what is no address.
    """
    parsed = ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None) or parsed
    if is_public(address) or any(mapped in ip_network(network) for network in allowed):
        return address
    raise InvalidInput(
        f"{address} is not an address of the public internet.",
        code="address_private",
        hint="Name a host that anybody can reach.",
    )


def check_url(url: str, *, allowed: Iterable[str] = (), schemes: Iterable[str] = ("https",)) -> SplitResult:
    """The parts of an address that may be called as far as it tells; what its name stands for is checked later.

    Raises InvalidInput (`url_invalid`, or `address_private` for a private address by number).
    """
    schemes = tuple(schemes)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidInput(f"{url[:200]!r} is no web address.", code="url_invalid") from None
    if parts.scheme not in schemes or not host or parts.username is not None or parts.password is not None:
        raise InvalidInput(
            f"A web address here starts with {' or '.join(f'{one}://' for one in schemes)}, names a host and carries "
            "no user or password.",
            code="url_invalid",
        )
    try:
        check_address(host, allowed=allowed)
    except ValueError:
        pass  # a name
    return parts


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    special = address.is_multicast or address.is_reserved or getattr(address, "is_site_local", False)
    # An IPv4 address written as IPv6 is reserved as such; the one inside is judged on its own.
    written = isinstance(address, IPv6Address) and bool(_inside(address))
    special = special or any(address in network for network in _SPECIAL)
    return written or (address.is_global and not special)


def _inside(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that an IPv6 address stands for when it passes a translator or a tunnel."""
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        found.append(IPv4Address(int(address) & 0xFFFF_FFFF))
    return [one for one in found if one is not None]
