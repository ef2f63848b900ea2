"""Which addresses may be called on a customer's word."""

import pytest

from kit.addresses import ANYWHERE, check_address, check_url, is_public
from kit.errors import InvalidInput


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.168.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:7f00:1::1",
        "2001:db8::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_inside_is_not_public_however_it_is_written(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(InvalidInput, match="public internet"):
        check_address(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"],
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)
    assert check_address(address) == address


def test_a_setting_allows_its_networks_and_no_others() -> None:
    assert check_address("10.1.2.3", allowed=["10.1.2.0/24"]) == "10.1.2.3"
    assert check_address("::ffff:10.1.2.3", allowed=["10.1.2.0/24"]) == "::ffff:10.1.2.3"
    with pytest.raises(InvalidInput):
        check_address("10.1.3.3", allowed=["10.1.2.0/24"])
    for address in ("127.0.0.1", "::1", "169.254.169.254"):
        assert check_address(address, allowed=ANYWHERE) == address


@pytest.mark.parametrize("name", ["hooks.example", "", "1.2.3", "127.1"])
def test_a_name_is_no_address(name: str) -> None:
    with pytest.raises(ValueError, match="address"):
        check_address(name)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/x",
        "ftp://hooks.example/x",
        "file:///etc/passwd",
        "hooks.example/x",
        "",
        "https://",
        "https://user@hooks.example/x",
        "https://:secret@hooks.example/x",
        "https://@hooks.example/x",
        "https://127.0.0.1/x",
        "https://10.1.2.3/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://hooks.example:99999/x",
        "https://[::1/x",
    ],
)
def test_a_web_address_is_https_to_a_host_outside(url: str) -> None:
    with pytest.raises(InvalidInput):
        check_url(url)


def test_a_web_address_is_taken_and_a_setting_allows_more() -> None:
    assert check_url("https://hooks.example:8443/x?y=1").hostname == "hooks.example"
    assert check_url("http://127.0.0.1:9/x", allowed=ANYWHERE, schemes=("https", "http")).port == 9
