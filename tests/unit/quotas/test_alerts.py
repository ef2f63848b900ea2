"""Alerts as rules: thresholds, the schedule of tries, Standard Webhooks signatures, where a webhook may go."""

from datetime import timedelta

import pytest

from kit.errors import InvalidInput
from quotas.alerts import RETRIES, check_addresses, check_url, crossed, next_try, signature, signing_secret


@pytest.mark.parametrize(
    ("spent", "reached"), [(0, []), (49, []), (50, [50]), (99, [50, 80]), (100, [50, 80, 100]), (900, [50, 80, 100])]
)
def test_a_threshold_is_reached_at_its_very_per_cent(spent: int, reached: list[int]) -> None:
    assert crossed([100, 50, 80, 50], spent=spent, amount=100) == reached


def test_pauses_grow_and_end() -> None:
    pauses = [next_try(tries) for tries in range(1, len(RETRIES) + 2)]
    assert pauses[0] == timedelta(seconds=5) and pauses[-1] is None
    assert list(RETRIES) == sorted(RETRIES)


def test_the_signature_is_the_one_of_the_standards_example() -> None:
    body = b'{"test": 2432232314}'
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    made = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_every_channel_has_a_secret_of_its_own() -> None:
    secrets = {signing_secret(master, channel) for master in (b"a", b"b") for channel in ("chn_1", "chn_2")}
    assert len(secrets) == 4


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/x",
        "ftp://hooks.example/x",
        "https://",
        "https://user@hooks.example/x",
        "https://127.0.0.1/x",
        "https://10.1.2.3/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://100.64.0.1/x",
        "https://hooks.example:99999/x",
    ],
)
def test_a_webhook_goes_nowhere_private(url: str) -> None:
    with pytest.raises(InvalidInput):
        check_url(url, private_ok=False)


def test_a_webhook_goes_to_the_public_internet_and_where_a_setting_allows_it() -> None:
    assert check_url("https://hooks.example/x", private_ok=False) == "https://hooks.example/x"
    assert check_url("http://127.0.0.1:9/x", private_ok=True) == "http://127.0.0.1:9/x"
    check_addresses(["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"], private_ok=False)
    with pytest.raises(InvalidInput):
        check_addresses(["93.184.216.34", "192.168.0.1"], private_ok=False)
