"""Filter, score, pick: each step by itself, and whole gangs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.units import GpuMilli
from quotas.vocabulary import FirmId, PoolName
from scheduler.occupancy import Wish, wish_of
from scheduler.packing import prices_of
from scheduler.placement import Ask, Scored, Scoring, as_rooms, could_hold, pick, place_gang, slots
from scheduler.rooms import Room, ground_of
from scheduler.scoring import by_bid_prices
from scheduler.snapshot import Node
from scheduler.vocabulary import NodeId, Shape, Spread

POOL, RED, BLUE = PoolName("a/x"), FirmId("firm_red"), FirmId("firm_blue")


def room(*gpus: int, cpus: int = 8, gib: int = 64, racks: str = "") -> Room:
    topology = [{"rack": rack} if rack != "-" else {} for rack in racks or "-" * len(gpus)]
    nodes = [
        Node(NodeId(f"n{i}"), POOL, GpuMilli(1000 * n), True, False, 1000 * cpus, gib << 10, topology[i])
        for i, n in enumerate(gpus)
    ]
    return ground_of(nodes).empty()


@pytest.mark.parametrize(
    ("shape", "fit"),
    [
        (Shape.of(500), [4, 8]),
        (Shape.of(600), [2, 4]),
        (Shape.of(1000), [2, 4]),
        (Shape.of(3000), [0, 1]),
        (Shape.of(500, cpu_milli=3000), [2, 2]),
        (Shape.of(500, memory_mib=20 << 10), [3, 3]),
        (Shape.of(0, cpu_milli=4000), [2, 2]),
    ],
)
def test_the_filter_counts_how_many_workers_fit(shape: Shape, fit: list[int]) -> None:
    assert slots(as_rooms(room(2, 4)), shape).tolist() == fit


def test_the_first_of_the_best_allowed_nodes_is_picked() -> None:
    assert pick(np.array([1, 9, 5, 5]), np.array([True, False, True, True])) == 2
    assert pick(np.array([1]), np.array([False])) is None


def test_an_accelerator_with_another_firms_share_takes_no_share_of_mine() -> None:
    of = room(1)
    of.take(0, (0,), Shape.of(300), RED)
    assert could_hold(of, Ask(RED, Shape.of(700)))
    assert not could_hold(of, Ask(BLUE, Shape.of(700)))
    of.give(0, (0,), Shape.of(300))
    assert could_hold(of, Ask(BLUE, Shape.of(1000)))


@pytest.mark.parametrize(
    ("spread", "topology", "nodes"),
    [
        (Spread.SAME_CENTRE, None, [0, 0]),
        (Spread.APART, None, [0, 1]),
        (Spread.SAME_NODE, None, [0, 0]),
        (Spread.APART, "rack", [1, 2]),
    ],
)
def test_workers_lie_as_they_are_asked_to(spread: Spread, topology: str | None, nodes: list[int]) -> None:
    seats = place_gang(room(2, 2, 2, racks="abb"), Ask(RED, Shape.of(1000), 2, spread, topology))
    assert seats is not None and [seat.node for seat in seats] == nodes


def test_a_gang_that_no_rack_holds_is_not_placed() -> None:
    assert place_gang(room(2, 2, racks="ab"), Ask(RED, Shape.of(1000), 3, topology="rack")) is None
    assert place_gang(room(2, 2), Ask(RED, Shape.of(1000), 1, topology="rack")) is None


def test_bid_prices_keep_a_share_out_of_a_hole_that_a_larger_one_fills() -> None:
    large, small = Shape.of(650, 400, 800), Shape.of(320, 400, 800)
    of = room(1, 1)
    of.take(0, (0,), small, RED)
    kept = place_gang(of, Ask(RED, small), Scoring(by_bid_prices(prices_of({large: 50, small: 40}))))
    fitted = place_gang(of, Ask(RED, small))
    assert kept and fitted and (kept[0].node, fitted[0].node) == (1, 0)


def test_a_node_is_scored_again_once_it_is_not_as_it_was() -> None:
    of, ask = room(3, 2), Ask(RED, Shape.of(1000))
    scored = Scored.nothing(of.ground, 2)
    for taken, best in (((), 1), ((0, 1), 0), ((2,), 1)):
        if taken:
            of.take(0, taken, Shape.of(1000 * len(taken)), BLUE)
        seats = place_gang(of, ask, scored=scored)
        assert seats and seats[0].node == best


asks = st.builds(
    lambda firm, milli, cpus, memory, workers, spread, topology: Ask(
        firm, Shape.of(milli, 1000 * max(cpus, milli == 0), 8192 * memory), workers, spread, topology
    ),
    st.sampled_from([RED, BLUE]),
    st.sampled_from([0, 1, 250, 500, 999, 1000, 2000]),
    st.integers(0, 4),
    st.integers(0, 3),
    st.integers(1, 4),
    st.sampled_from(Spread),
    st.sampled_from([None, "rack"]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("ab-")), min_size=1, max_size=5), st.lists(asks))
def test_nothing_is_given_out_twice_and_no_accelerator_to_two_firms(
    nodes: list[tuple[int, str]], line: list[Ask]
) -> None:
    of = room(*(gpus for gpus, _ in nodes), racks="".join(rack for _, rack in nodes))
    policy = Scoring(by_bid_prices(prices_of({Shape.of(500, 1000, 8192): 2, Shape.of(1000, 2000, 8192): 1})))
    owners: dict[tuple[int, int], FirmId] = {}
    scored: dict[Wish, Scored] = {}
    for ask in line:
        seats = place_gang(of, ask, policy)
        assert (seats is not None) == could_hold(of, ask)
        known = scored.setdefault(wish_of(ask), Scored.nothing(of.ground, len(nodes)))
        assert place_gang(of, ask, policy, known) == seats, "what is remembered changes nothing"
        for seat in seats or ():
            assert len(set(seat.devices)) == ask.shape.gpus
            for device in seat.devices:
                assert of.gpu_milli[seat.node, device] == 1000 or owners[seat.node, device] == ask.firm
                owners[seat.node, device] = ask.firm
            of.take(seat.node, seat.devices, ask.shape, ask.firm)
        assert min(of.gpu_milli.min(initial=0), of.cpu_milli.min(), of.memory_mib.min()) >= 0
        used = {seat.node for seat in seats or ()}
        assert not used or ask.spread is not Spread.APART or len(used) == ask.workers
        assert not used or ask.spread is not Spread.SAME_NODE or len(used) == 1
        assert not ask.topology or len({of.ground.topology[node].get("rack") for node in used}) <= 1
