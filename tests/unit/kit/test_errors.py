import pytest

from kit import errors


@pytest.mark.parametrize(
    ("kind", "code", "retryable"),
    [
        (errors.InvalidInput, "invalid_input", False),
        (errors.TooLarge, "too_large", False),
        (errors.Unauthenticated, "unauthenticated", False),
        (errors.Forbidden, "forbidden", False),
        (errors.NotFound, "not_found", False),
        (errors.Conflict, "conflict", False),
        (errors.Refused, "refused", False),
        (errors.NoMoney, "no_money", False),
        (errors.RateLimited, "rate_limited", True),
        (errors.Unavailable, "unavailable", True),
    ],
)
def test_every_error_knows_its_code_and_whether_to_retry(
    kind: type[errors.HeliuError], code: str, retryable: bool
) -> None:
    error = kind("it is so")
    assert (error.code, error.retryable, str(error)) == (code, retryable, "it is so")


def test_a_refusal_may_name_its_rule_and_what_to_do() -> None:
    error = errors.Refused("no quota in this pool", code="no_quota", hint="ask for quota", details={"pool": "p"})
    assert (error.code, error.hint, error.details) == ("no_quota", "ask for quota", {"pool": "p"})


def test_details_are_a_copy_that_later_changes_do_not_reach() -> None:
    details = {"pool": "p"}
    error = errors.Refused("no", details=details)
    details["pool"] = "q"
    assert error.details == {"pool": "p"}
