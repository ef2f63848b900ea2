"""Prices of room: what a placement costs the tasks still to come."""

import numpy as np
import pytest

from scheduler.packing import Beside, prices_of
from scheduler.rooms import Rooms
from scheduler.scoring import Prices
from scheduler.vocabulary import Shape

SHARE = Shape(cpu_milli=4_000, memory_mib=8_000, gpus=1, gpu_milli=600)
WHOLE = Shape(cpu_milli=8_000, memory_mib=16_000, gpus=1, gpu_milli=1_000)


def rooms(cpu_milli: int, memory_mib: int, *gpus: int) -> Rooms:
    return Rooms(np.array([cpu_milli]), np.array([memory_mib]), np.array([gpus]))


def test_a_share_is_kept_out_of_a_hole_that_a_larger_one_would_fill() -> None:
    large, small = Shape(4_000, 8_000, 1, 650), Shape(4_000, 8_000, 1, 320)
    prices = prices_of({large: 50, small: 40})
    hole_of_680, whole_gpu = prices.share_cost(np.array([680, 1_000]), 320)
    assert hole_of_680 - whole_gpu == pytest.approx(650)


def test_a_remainder_nobody_asks_for_is_worth_nothing() -> None:
    prices = prices_of({SHARE: 10})
    assert prices.residual[400] == 0
    assert prices.residual[1_000] == pytest.approx(prices.residual[600]) == pytest.approx(600)


def test_worth_never_falls_when_more_is_left() -> None:
    worth = prices_of({SHARE: 7, WHOLE: 5}).residual
    assert np.all(np.diff(worth) >= -1e-9)


def test_gpu_room_without_cpu_counts_as_shortage() -> None:
    prices = prices_of({WHOLE: 1})  # 8 CPU milli and 16 MiB for every thousandth
    assert prices.shortage(rooms(4_000, 1_000_000, 1_000))[0] == pytest.approx(500)
    assert prices.shortage(rooms(8_000, 16_000, 1_000))[0] == pytest.approx(0)


def test_a_placement_pays_for_the_shortage_it_makes() -> None:
    prices = prices_of({WHOLE: 1})
    before, after = rooms(16_000, 32_000, 1_000, 1_000), rooms(4_000, 16_000, 1_000, 0)
    cost = prices.placement_cost(before, after, left=None, gpu_milli=1_000)
    assert cost.tolist() == [500]


def test_where_cpu_runs_out_first_a_node_that_serves_only_some_tasks_is_short_for_the_others() -> None:
    lean, hungry = Shape(2_000, 0, 1, 1_000), Shape(14_000, 0, 1, 1_000)  # 2 and 14 CPU milli for every thousandth
    mix = {lean: 5, hungry: 5, Shape(10_000, 0, 0, 0): 10}
    node = rooms(8_000, 0, 1_000)
    assert prices_of(mix).shortage(node)[0] == pytest.approx(0)  # 8 on average
    assert prices_of(mix, Beside(cpu_milli=20)).shortage(node)[0] == pytest.approx(0)  # 18 are asked for
    scarce = prices_of(mix, Beside(cpu_milli=17))
    of_hungry = 2**2 / (2**2 + 14**2)  # the lean count more, by the square of what a CPU serves
    assert scarce.shortage(node)[0] == pytest.approx(of_hungry * (1_000 - 8_000 / 14))
    short = (1 - of_hungry) * 500 + of_hungry * (1_000 - 1_000 / 14)
    assert scarce.shortage(rooms(1_000, 0, 1_000))[0] == pytest.approx(short)
    assert scarce.shortage(rooms(14_000, 0, 1_000))[0] == pytest.approx(0)


def test_cpu_only_tasks_cost_least_where_the_gpus_are_taken() -> None:
    mix = {Shape(2_000, 0, 1, 1_000): 5, Shape(14_000, 0, 1, 1_000): 5, Shape(10_000, 0, 0, 0): 10}
    prices = prices_of(mix, Beside(cpu_milli=10))
    taken, free = rooms(11_000, 0, 0), rooms(11_000, 0, 1_000)
    cost = [
        prices.placement_cost(before, rooms(int(before.cpu_milli[0]) - 10_000, 0, gpu), left=None, gpu_milli=0)[0]
        for before, gpu in ((taken, 0), (free, 1_000))
    ]
    assert cost[0] == 0
    assert cost[1] == 500, "rounded to the grain"


def test_a_mix_without_gpu_tasks_prices_nothing() -> None:
    prices = prices_of({Shape(1_000, 1_000, 0, 0): 4})
    assert isinstance(prices, Prices)
    assert not prices.residual.any()
