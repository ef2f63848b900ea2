"""Tokens: their form, what is kept of them, and the addresses they may come from."""

import pytest

from kit.auth import hash_secret, same_secret
from kit.errors import InvalidInput
from quotas.bearers import SESSION_PREFIX, ip_allowed, mint, mint_key, parse_key, valid_ranges
from quotas.vocabulary import KeyId


def test_a_key_is_written_with_its_id_and_read_back() -> None:
    for _ in range(200):  # a secret may itself hold underscores and dashes
        minted = mint_key(KeyId("key_01m81zzftrhjt1h9q59e3wnqh9"))
        parsed = parse_key(minted.token)
        assert parsed is not None
        key_id, secret = parsed
        assert key_id == "key_01m81zzftrhjt1h9q59e3wnqh9"
        assert len(secret) == 43 and same_secret(secret, minted.token_hash)


@pytest.mark.parametrize("bearer", ["", "hl_", "hl__", "hl_x", "hl_x_", "hl__y", "hs_x_y", "HL_x_y", "sk-abc"])
def test_what_is_no_key_is_not_read_as_one(bearer: str) -> None:
    assert parse_key(bearer) is None


def test_two_sessions_share_nothing_and_only_the_hash_is_kept() -> None:
    one, other = mint(SESSION_PREFIX), mint(SESSION_PREFIX)
    assert one.token.startswith("hs_") and one.token != other.token
    assert one.token_hash == hash_secret(one.token) and len(one.token_hash) == 32


@pytest.mark.parametrize(
    ("ranges", "ip", "allowed"),
    [
        (None, None, True),
        (None, "anything", True),
        (("10.0.0.0/8",), "10.1.2.3", True),
        (("10.0.0.0/8",), "11.1.2.3", False),
        (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
        (("2001:db8::/32",), "2001:db8::1", True),
        (("2001:db8::/32",), "10.1.2.3", False),
        (("10.0.0.1/32",), None, False),
        (("10.0.0.1/32",), "unix", False),
    ],
)
def test_an_address_is_inside_the_ranges_or_refused(
    ranges: tuple[str, ...] | None, ip: str | None, allowed: bool
) -> None:
    assert ip_allowed(ranges, ip) is allowed


@pytest.mark.parametrize("bad", ["10.0.0.1/8", "10.0.0.0/33", "example.com", "", "10.0.0.0/-1"])
def test_a_range_that_is_none_is_named(bad: str) -> None:
    with pytest.raises(InvalidInput, match="IP range"):
        valid_ranges(("10.0.0.0/8", bad))
