"""Which rate applies when, and what quantities cost: integers, split at boundaries, rounded once."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import Refused
from kit.units import GpuMs, Ppm
from quotas.pricing import (
    RESIDUE_UNIT,
    SHANGHAI,
    Discount,
    Meter,
    RateKey,
    Segment,
    Tariff,
    Window,
    discount_at,
    gpu_segments,
    price_gpu,
    price_tokens,
    rate_range,
    spread,
)
from quotas.vocabulary import DiscountId, FirmId, TariffId, UsageKind

POOL = "a/x"


def tariff(name: str, start: datetime, end: datetime | None, rate: int, **windows: int) -> Tariff:
    """A tariff with one price, and others in the windows `valley` (23–07) and `peak` (18–21)."""
    rates = {RateKey(Meter.GPU_HOUR, POOL, "standard"): rate}
    rates |= {RateKey(Meter.GPU_HOUR, POOL, "standard", window): price for window, price in windows.items()}
    spans = (Window("valley", 23 * 60, 7 * 60), Window("peak", 18 * 60, 21 * 60))
    return Tariff(TariffId(name), start, end, rates, spans if windows else ())


def at(day: int, hour: int, minute: int = 0, month: int = 3) -> datetime:
    """An instant of 2028 in Wuhan: a leap year."""
    return datetime(2028, month, day, hour, minute, tzinfo=SHANGHAI)


FOREVER = datetime(2020, 1, 1, tzinfo=UTC)


def test_a_span_inside_one_price_is_one_segment() -> None:
    [segment] = gpu_segments([tariff("t", FOREVER, None, 10)], pool=POOL, qos="standard", start=at(1, 1), end=at(1, 2))
    assert (segment.start, segment.end, segment.rate) == (at(1, 1), at(1, 2), 10)


def test_a_span_across_a_boundary_is_split_there_and_the_boundary_belongs_to_the_new_price() -> None:
    book = [tariff("old", FOREVER, at(1, 12), 10), tariff("new", at(1, 12), None, 20)]
    segments = gpu_segments(book, pool=POOL, qos="standard", start=at(1, 11), end=at(1, 13))
    assert [(s.tariff_id, s.end - s.start) for s in segments] == [
        ("old", timedelta(hours=1)),
        ("new", timedelta(hours=1)),
    ]
    [only] = gpu_segments(book, pool=POOL, qos="standard", start=at(1, 12), end=at(1, 13))
    assert only.tariff_id == "new"


LEAP_NIGHT = [("", 1), ("valley", 8), ("", 11), ("peak", 3), ("", 2), ("valley", 1)]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (at(1, 22), at(2, 8), [("", 1), ("valley", 8), ("", 1)]),
        (at(28, 22, month=2), at(1, 0), LEAP_NIGHT),
        (at(31, 23, month=12), at(31, 23, month=12) + timedelta(hours=2), [("valley", 2)]),
        (at(1, 18), at(1, 21), [("peak", 3)]),
        (at(1, 17), at(1, 18), [("", 1)]),
    ],
    ids=["over midnight", "over the leap day", "over new year", "exactly the window", "up to the window"],
)
def test_valley_and_peak_are_hours_of_wuhan(start: datetime, end: datetime, expected: list[tuple[str, int]]) -> None:
    book = [tariff("t", FOREVER, None, 10, valley=4, peak=15)]
    segments = gpu_segments(book, pool=POOL, qos="standard", start=start.astimezone(UTC), end=end.astimezone(UTC))
    assert [(s.window, (s.end - s.start) / timedelta(hours=1)) for s in _joined(segments)] == expected


def _joined(segments: tuple[Segment, ...]) -> list[Segment]:
    """Neighbours at one price as one: midnight cuts a window that passes it."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].window == segment.window:
            joined[-1] = replace(joined[-1], end=segment.end)
        else:
            joined.append(segment)
    return joined


def test_no_tariff_is_refused_by_name_also_where_a_gap_lies_inside() -> None:
    book = [tariff("old", FOREVER, at(1, 12), 10), tariff("new", at(1, 13), None, 20)]
    for start, end in ((at(1, 11), at(1, 14)), (at(1, 12), at(1, 12))):
        with pytest.raises(Refused) as caught:
            gpu_segments(book, pool=POOL, qos="standard", start=start, end=end)
        assert caught.value.code == "no_tariff"


def test_a_named_pool_goes_before_any_pool_and_a_window_before_none() -> None:
    rates = {
        RateKey(Meter.GPU_HOUR, "*", "standard"): 1,
        RateKey(Meter.GPU_HOUR, "a/x", "standard"): 2,
        RateKey(Meter.GPU_HOUR, "*", "standard", "valley"): 3,
    }
    book = Tariff(TariffId("t"), FOREVER, None, rates)
    assert book.rate(Meter.GPU_HOUR, "b/y", "standard") == 1
    assert book.rate(Meter.GPU_HOUR, "a/x", "standard", "valley") == 2
    assert book.rate(Meter.GPU_HOUR, "b/y", "standard", "valley") == 3
    assert book.rate(Meter.GPU_HOUR, "a/x", "reserved") is None


def test_the_range_of_a_quote_covers_every_window_because_work_may_wait() -> None:
    book = [tariff("t", FOREVER, None, 10, valley=4, peak=15)]
    assert rate_range(book, pool=POOL, qos="standard", start=at(1, 12), end=at(1, 13)) == (4, 15)


@pytest.mark.parametrize(
    ("parts", "amount"),
    [
        ([(1, 1_800_000)], 0),  # half a micro-yuan: to even, down
        ([(3, 1_800_000)], 2),  # one and a half: to even, up
        ([(1, 1_800_000), (1, 1_800_000)], 1),  # rounded once, not per part
        ([(3_600_000, 12_500_000)], 12_500_000),
        ([(0, 5)], 0),
    ],
)
def test_gpu_time_is_rounded_once_half_to_even(parts: list[tuple[GpuMs, int]], amount: int) -> None:
    assert price_gpu(parts).amount == amount


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), max_size=5))
def test_amount_and_residue_together_are_exact(parts: list[tuple[int, int]]) -> None:
    exact = sum(quantity * rate for quantity, rate in parts)
    tokens, gpu = price_tokens(parts), price_gpu([(GpuMs(quantity), rate) for quantity, rate in parts])
    assert tokens.amount * RESIDUE_UNIT + tokens.residue == exact * (RESIDUE_UNIT // 1_000_000)
    assert gpu.amount * RESIDUE_UNIT + gpu.residue == exact * (RESIDUE_UNIT // 3_600_000)
    assert max(abs(tokens.residue), abs(gpu.residue)) <= RESIDUE_UNIT // 2


@given(st.integers(0, 2**50), st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
def test_spreading_over_time_loses_nothing(total: int, lengths: list[int]) -> None:
    spans, start = [], FOREVER
    for length in lengths:
        spans.append((start, start + timedelta(microseconds=length)))
        start = spans[-1][1]
    shares = spread(total, spans)
    assert sum(shares) == total
    assert all(share >= 0 for share in shares)


def discount(name: str, start: datetime, end: datetime | None, off: int, resource: str = "*") -> Discount:
    """A contract on compute."""
    firm = FirmId("firm")
    return Discount(DiscountId(name), firm, UsageKind.COMPUTE, resource, Ppm(off), start, end)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (at(29, 22, month=2), at(1, 8), [("", 10, 60), ("valley", 4, 90), ("valley", 2, 390), ("", 5, 60)]),
        (at(1, 0, 30), at(1, 1), [("valley", 2, 30)]),
        (at(29, 23, month=2), at(1, 0, 30), [("valley", 4, 90)]),
        (at(29, 12, month=2), at(29, 12, month=2), [("", 10, 0)]),
    ],
    ids=["over the leap day", "from its first instant", "up to its first instant", "an instant"],
)
def test_a_discount_splits_a_span_where_it_begins_also_inside_a_valley(
    start: datetime, end: datetime, expected: list[tuple[str, int, int]]
) -> None:
    book = [tariff("t", FOREVER, None, 10, valley=4)]
    contract = [discount("half", at(1, 0, 30), None, 500_000)]
    segments = gpu_segments(book, pool=POOL, qos="standard", start=start, end=end, discounts=contract)
    minutes: dict[tuple[str, int], int] = {}
    for one in segments:
        passed = (one.end - one.start) // timedelta(minutes=1)
        minutes[one.window, one.rate] = minutes.get((one.window, one.rate), 0) + passed
        assert (one.discount_id is None) == (one.rate == one.list_rate)
    assert [(*key, passed) for key, passed in minutes.items()] == expected


def test_a_contract_names_a_pool_before_all_and_ends_half_open() -> None:
    contracts = [discount("all", at(1, 0), at(2, 0), 100_000), discount("pool", at(1, 6), at(1, 12), 900_000, POOL)]
    found = [discount_at(contracts, UsageKind.COMPUTE, POOL, instant) for instant in (at(1, 5), at(1, 6), at(1, 12))]
    assert [one.id if one else None for one in found] == ["all", "pool", "all"]
    assert discount_at(contracts, UsageKind.COMPUTE, POOL, at(2, 0)) is None
    assert discount_at(contracts, UsageKind.TOKENS, POOL, at(1, 6)) is None
