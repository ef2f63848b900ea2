"""Alerts as rules: thresholds, the schedule of tries, Standard Webhooks signatures."""

from datetime import timedelta

import pytest

from quotas.alerts import RETRIES, crossed, next_try, signature, signing_secret


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
