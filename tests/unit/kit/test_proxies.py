"""Whose request it is when proxies pass it on: nobody is believed but the installation's own."""

from ipaddress import ip_network

import pytest

from kit.proxies import NOBODY, ProxyHeader, TrustedProxies

INGRESS = "10.1.2.3"
OWN = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        (INGRESS, "203.0.113.7", "203.0.113.7"),
        (INGRESS, "1.1.1.1, 203.0.113.7", "203.0.113.7"),  # the client wrote 1.1.1.1 itself
        (INGRESS, "1.1.1.1, 203.0.113.7, 10.9.9.9", "203.0.113.7"),  # two proxies of ours
        (INGRESS, "10.0.0.9, 203.0.113.7", "203.0.113.7"),  # the client claims to be inside
        (INGRESS, "10.0.0.9", "10.0.0.9"),  # it is inside
        (INGRESS, "10.0.0.8,10.0.0.9", "10.0.0.8"),
        (INGRESS, "203.0.113.7:4711", "203.0.113.7"),
        (INGRESS, "2001:db8::7", "2001:db8::7"),
        (INGRESS, "[2001:db8::7]:4711", "2001:db8::7"),
        (INGRESS, "::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:10.1.2.3", "203.0.113.7", "203.0.113.7"),
        ("fd00::1", "203.0.113.7", "203.0.113.7"),
        (INGRESS, None, INGRESS),
        (INGRESS, "", INGRESS),
        (INGRESS, "203.0.113.7, unknown", NOBODY),
        (INGRESS, "203.0.113.7,", NOBODY),
        (INGRESS, "203.0.113.7, 10.9.9.9, example.org", NOBODY),
        (INGRESS, ",".join(["10.0.0.1"] * 33), NOBODY),
        (INGRESS, "203.0.113.7," + ",".join(["10.0.0.1"] * 31), "203.0.113.7"),
        ("203.0.113.50", "198.51.100.1", "203.0.113.50"),  # nobody we know says so
        ("", "198.51.100.1", ""),
    ],
)
def test_the_last_address_that_is_not_ours_is_the_clients(peer: str, header: str | None, client: str) -> None:
    said = None if header is None else header.encode()
    assert TrustedProxies(OWN).client_of(peer, said) == client


@pytest.mark.parametrize(
    ("header", "client"),
    [
        ("for=203.0.113.7;proto=https;by=10.1.2.3", "203.0.113.7"),
        ('proto=https; For="[2001:db8::7]:4711"', "2001:db8::7"),
        ("for=1.1.1.1, for=203.0.113.7, for=10.0.0.4", "203.0.113.7"),
        ('for="1.1.1.1, for=203.0.113.7', "203.0.113.7"),  # a quote that the client left open
        ("for=_hidden", NOBODY),
        ("for=unknown", NOBODY),
        ("proto=https", NOBODY),
        ("203.0.113.7", NOBODY),
    ],
)
def test_forwarded_is_read_where_proxies_write_that(header: str, client: str) -> None:
    assert TrustedProxies(OWN, ProxyHeader.FORWARDED).client_of(INGRESS, header.encode()) == client


def test_without_proxies_nobody_is_believed() -> None:
    assert TrustedProxies().client_of("127.0.0.1", b"203.0.113.7") == "127.0.0.1"
