"""Where a request comes from when proxies stand before us: what they wrote, taken from nobody else.

Pure. A proxy adds who spoke to it at the end of a header; what stands before that the client may have made up. So the
header counts only where the peer is a trusted proxy, and is read from its end: the first address that is no trusted
proxy's is the client's. Only one header is read, the one that the installation's proxies write: others they may pass on
as the client sent them.
"""

from collections.abc import Collection, Iterable
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

HOPS_MAX: Final = 32
NOBODY: Final = ""
"""A client whose address is not known: it is in no network."""
Network = IPv4Network | IPv6Network


class ProxyHeader(StrEnum):
    """The header in which proxies name who spoke to them."""

    X_FORWARDED_FOR = "x-forwarded-for"
    FORWARDED = "forwarded"  # RFC 7239


class TrustedProxies:
    """The networks in which an installation's own proxies stand."""

    __slots__ = ("_networks", "header")

    def __init__(self, networks: Collection[Network] = (), header: ProxyHeader = ProxyHeader.X_FORWARDED_FOR) -> None:
        self._networks = tuple(networks)
        self.header = header.encode()

    def client_of(self, peer: str, header: bytes | None) -> str:
        """Whose request it is: `peer`'s own, or by the `header` of a trusted one. NOBODY when a proxy does not say."""
        if not self._networks or not self._trusts(_address(peer)) or not header:
            return peer
        client: IPv4Address | IPv6Address | None = None
        for hop in self._hops(header.decode("latin-1")):
            client = _address(hop)
            if client is None:
                return NOBODY
            if not self._trusts(client):
                break
        return NOBODY if client is None else str(client)

    def _hops(self, header: str) -> Iterable[str]:
        """Who spoke to each proxy, the nearest first; what is too long to be true names nobody."""
        hops = header.rsplit(",", HOPS_MAX)
        if len(hops) > HOPS_MAX:
            hops[0] = NOBODY
        hops.reverse()
        return hops if self.header == ProxyHeader.X_FORWARDED_FOR.encode() else map(_for_of, hops)

    def _trusts(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _for_of(element: str) -> str:
    """`for=` of one element of `Forwarded`."""
    for pair in element.split(";"):
        name, _, value = pair.strip().partition("=")
        if name.lower() == "for":
            return value.strip('"')
    return NOBODY


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address in `1.2.3.4`, `1.2.3.4:567`, `2001:db8::1` or `[2001:db8::1]:567`; None for what is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
