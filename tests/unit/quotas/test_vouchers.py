"""Who pays: burn order, shares, limits, and that a settlement never asks more of anybody than was held."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.units import MicroYuan, Ppm
from quotas.vocabulary import FirmId, ProgrammeId, UsageKind, VoucherId
from quotas.vouchers import VoucherTerms, affordable, allocate, burn_order, room_under_cap, settle

NOW = datetime(2026, 11, 2, tzinfo=UTC)


def voucher(
    name: str, *, share: int = 500_000, left: int = 1000, priority: int = 1, days: int = 30, **more: object
) -> VoucherTerms:
    values = {"valid_from": NOW, "expires_at": NOW + timedelta(days=days), **more}
    return VoucherTerms(
        VoucherId(name), ProgrammeId("prg"), FirmId("firm"), Ppm(share), priority, left=MicroYuan(left), **values
    )  # type: ignore[arg-type]


def paid(amount: int, *vouchers: VoucherTerms) -> tuple[dict[str, int], int]:
    made = allocate(MicroYuan(amount), vouchers, kind=UsageKind.COMPUTE, pool="a/x", at=NOW)
    return {part.voucher_id: part.amount for part in made.parts}, made.cash


def test_the_burn_order_is_priority_then_expiry_then_id() -> None:
    vouchers = [voucher("d", priority=2), voucher("b"), voucher("a"), voucher("c", days=1)]
    assert [one.id for one in burn_order(vouchers)] == ["c", "a", "b", "d"]


@pytest.mark.parametrize(
    ("amount", "vouchers", "expected", "cash"),
    [
        (100, [voucher("a")], {"a": 50}, 50),
        (101, [voucher("a")], {"a": 50}, 51),  # a share is rounded down
        (100, [voucher("a", left=20), voucher("b", share=300_000)], {"a": 20, "b": 18}, 62),
        (100, [voucher("a", share=1_000_000)], {"a": 100}, 0),
        (100, [voucher("a", share=1_000_000, left=40)], {"a": 40}, 60),
        (0, [voucher("a")], {}, 0),
        (1, [voucher("a")], {}, 1),  # half of one, rounded down, is nothing
        (100, [], {}, 100),
    ],
)
def test_one_yuan_of_cost_is_subsidised_by_one_programme_only(
    amount: int, vouchers: list[VoucherTerms], expected: dict[str, int], cash: int
) -> None:
    assert paid(amount, *vouchers) == (expected, cash)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"valid_from": NOW + timedelta(seconds=1)}, "valid from"),
        ({"expires_at": NOW}, "expired at"),
        ({"covers": frozenset({UsageKind.TOKENS})}, "does not pay for compute"),
        ({"pools": frozenset({"b/y"})}, "does not pay for pool a/x"),
        ({"left": 0}, "used up"),
    ],
    ids=["not yet", "no more", "other usage", "other pool", "empty"],
)
def test_a_voucher_that_does_not_pay_says_why(changes: dict[str, object], reason: str) -> None:
    made = allocate(MicroYuan(100), [voucher("a", **changes)], kind=UsageKind.COMPUTE, pool="a/x", at=NOW)  # type: ignore[arg-type]
    assert (made.parts, made.cash) == ((), 100)
    assert reason in made.explanation[0]


vouchers_of_any_kind = st.lists(
    st.builds(
        voucher,
        st.sampled_from("abcdef"),
        share=st.one_of(st.integers(1, 1_000_000), st.sampled_from([10_000, 500_000, 1_000_000])),
        left=st.integers(1, 5000),
        priority=st.integers(1, 3),
    ),
    max_size=4,
    unique_by=lambda one: one.id,
)


@given(st.integers(0, 20_000), st.integers(0, 20_000), vouchers_of_any_kind)
def test_a_settlement_asks_no_more_of_anybody_than_was_held(one: int, other: int, vouchers: list[VoucherTerms]) -> None:
    used, held = sorted((one, other))
    hold = allocate(MicroYuan(held), vouchers, kind=UsageKind.COMPUTE, pool="a/x", at=NOW)
    bill = settle(MicroYuan(used), hold.parts)
    assert bill.cash + sum(part.amount for part in bill.parts) == used
    assert bill.cash <= hold.cash
    limits = {part.voucher_id: part.amount for part in hold.parts}
    assert all(part.amount <= limits[part.voucher_id] for part in bill.parts)


@given(st.integers(0, 20_000), vouchers_of_any_kind)
def test_settling_all_that_was_held_is_paid_as_it_was_held(amount: int, vouchers: list[VoucherTerms]) -> None:
    hold = allocate(MicroYuan(amount), vouchers, kind=UsageKind.COMPUTE, pool="a/x", at=NOW)
    bill = settle(MicroYuan(amount), hold.parts)
    assert (bill.cash, [part.amount for part in bill.parts]) == (hold.cash, [part.amount for part in hold.parts])


@pytest.mark.parametrize(("cap", "granted", "room"), [(100, 0, 100), (100, 60, 40), (100, 100, 0), (100, 130, 0)])
def test_the_cap_leaves_what_was_not_granted_this_year(cap: int, granted: int, room: int) -> None:
    assert room_under_cap(cap=MicroYuan(cap), granted_this_year=MicroYuan(granted)) == room


@given(amount=st.integers(0, 300), cash=st.integers(-5, 200), vouchers=vouchers_of_any_kind)
def test_as_much_is_affordable_as_the_cash_beside_vouchers_allows(
    amount: int, cash: int, vouchers: list[VoucherTerms]
) -> None:
    made = affordable(MicroYuan(amount), cash, vouchers, kind=UsageKind.COMPUTE, pool="a/x", at=NOW)
    fits = [cost for cost in range(amount + 1) if paid(cost, *vouchers)[1] <= max(0, cash)]
    assert made.cash + sum(part.amount for part in made.parts) == max(fits)
    assert made.cash <= max(0, cash)
