"""The ladder of refusals: each rung by name, and the order in which they are asked."""

from datetime import UTC, datetime, timedelta

import pytest

from kit.units import MAX_AMOUNT
from quotas.ledger import (
    Account,
    Book,
    Leg,
    Refusal,
    TransferKind,
    expire,
    extend,
    pending,
    post,
    post_legs,
    posted,
    void,
)
from quotas.ledger_checks import check_resolutions
from quotas.vocabulary import RefusalReason as Why

NOW = datetime(2026, 11, 2, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
ACCOUNTS = {
    1: Account(1, "bank", "CNY"),
    2: Account(2, "cash", "CNY", bounded=True),
    3: Account(3, "revenue", "CNY"),
    4: Account(4, "gpu", "GPU_MS:a/x"),
    5: Account(5, "closed", "CNY", closed=True),
    6: Account(6, "credit", "CNY", bounded=True, floor=-50),
}


def book(*operations: list[Leg]) -> Book:
    """A book in which cash has 100 and these operations stand."""
    made = post_legs(Book(accounts=ACCOUNTS), [posted(1, 2, 100)], at=NOW)
    for legs in operations:
        assert isinstance(made, Book)
        made = post_legs(made, legs, at=NOW)
    assert isinstance(made, Book), made
    return made


HELD = [pending(2, 3, 60, LATER)]  # transfer 2


@pytest.mark.parametrize(
    ("leg", "at", "why"),
    [
        (posted(2, 3, 0), NOW, Why.AMOUNT_NOT_POSITIVE),
        (posted(2, 3, -5), NOW, Why.AMOUNT_NOT_POSITIVE),
        (posted(2, 3, MAX_AMOUNT + 1), NOW, Why.AMOUNT_TOO_LARGE),
        (post(99, 1), NOW, Why.PENDING_UNKNOWN),
        (Leg(TransferKind.VOID), NOW, Why.PENDING_UNKNOWN),
        (post(1, 1), NOW, Why.PENDING_UNKNOWN),  # transfer 1 was never pending
        (post(2, 1), LATER, Why.PENDING_EXPIRED),
        (extend(2, 1), LATER, Why.PENDING_EXPIRED),
        (expire(2), NOW, Why.PENDING_NOT_EXPIRED),
        (post(2, 61), NOW, Why.EXCEEDS_PENDING),
        (posted(2, 2, 1), NOW, Why.SAME_ACCOUNT),
        (posted(2, 77, 1), NOW, Why.ACCOUNT_UNKNOWN),
        (posted(2, 4, 1), NOW, Why.ASSET_MISMATCH),
        (posted(2, 5, 1), NOW, Why.ACCOUNT_CLOSED),
        (posted(2, 3, 41), NOW, Why.EXCEEDS_FUNDS),
        (extend(2, 41), NOW, Why.EXCEEDS_FUNDS),
        # two reasons at once: the earlier rung speaks
        (posted(2, 2, 0), NOW, Why.AMOUNT_NOT_POSITIVE),
        (post(99, 0), NOW, Why.AMOUNT_NOT_POSITIVE),
        (post(2, 61), LATER, Why.PENDING_EXPIRED),
        (posted(77, 77, 1), NOW, Why.SAME_ACCOUNT),
        (posted(4, 5, 10**6), NOW, Why.ASSET_MISMATCH),
    ],
)
def test_each_refusal_has_its_name_and_its_place(leg: Leg, at: datetime, why: Why) -> None:
    before = book(HELD)
    refusal = post_legs(before, [leg], at=at)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is why


def test_a_resolved_hold_is_resolved_for_good() -> None:
    for resolution in (post(2, 60), post(2, 10), void(2)):
        after = book(HELD, [resolution])
        for again in (post(2, 1), void(2), extend(2, 1)):
            refusal = post_legs(after, [again], at=NOW)
            assert refusal == Refusal(Why.PENDING_RESOLVED, leg=0)
        assert check_resolutions(after.transfers) == []


def test_a_final_post_releases_the_rest_and_a_partial_one_keeps_it() -> None:
    assert book(HELD, [post(2, 10)]).balances[2].available == 90
    partial = book(HELD, [post(2, 10, final=False)])
    assert (partial.balances[2].available, partial.open[2].left) == (40, 50)
    assert book(HELD, [post(2, 60, final=False)]).open == {}, "taking all resolves it"


def test_a_credit_line_is_a_floor_below_zero() -> None:
    assert isinstance(post_legs(book(), [posted(6, 3, 50)], at=NOW), Book)
    refusal = post_legs(book(), [posted(6, 3, 51)], at=NOW)
    assert refusal == Refusal(Why.EXCEEDS_FUNDS, account=6)


def test_one_refused_leg_refuses_the_whole_operation() -> None:
    before = book()
    assert post_legs(before, [posted(2, 3, 10), posted(2, 4, 1)], at=NOW) == Refusal(Why.ASSET_MISMATCH, leg=1)
    assert before.balances[2].available == 100


def test_a_hold_keeps_money_from_others_until_it_is_let_go() -> None:
    held = book(HELD)
    assert post_legs(held, [posted(2, 3, 41)], at=NOW) == Refusal(Why.EXCEEDS_FUNDS, account=2)
    freed = post_legs(held, [expire(2)], at=LATER)
    assert isinstance(freed, Book)
    assert isinstance(post_legs(freed, [posted(2, 3, 100)], at=LATER), Book)
