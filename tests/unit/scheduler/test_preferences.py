"""Each part of a node's score by itself, together over many nodes, and what it decides."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.units import GpuMilli
from quotas.vocabulary import FirmId, PoolName
from scheduler.cycle import Policy, decide
from scheduler.placement import BEST_FIT, Candidates, Scoring
from scheduler.preferences import (
    HALF_BYTES,
    ON_DISK,
    USUAL,
    Files,
    Nearness,
    Shelves,
    Weights,
    data_nearby,
    low_price,
    nearness,
    warm_model,
)
from scheduler.rooms import Ints
from scheduler.sharing import Quota
from scheduler.snapshot import NOTHING, Node, Queued, State, Stock, Waiting
from scheduler.vocabulary import NodeId, Start, WorkloadId

NOW = datetime(2026, 11, 2, tzinfo=UTC)
FIRM, A, B = FirmId("firm_1"), PoolName("one/x"), PoolName("two/x")
GIB = 1 << 30


def holds(files: str = "", models: str = "", warm: str = "") -> Stock:
    return Stock(frozenset(files), frozenset(models), frozenset(warm))


@pytest.mark.parametrize(
    ("model", "there", "part"),
    [
        (None, holds(models="m", warm="m"), 0.0),
        ("m", NOTHING, 0.0),
        ("m", holds(models="n", warm="n"), 0.0),
        ("m", holds(models="mn"), ON_DISK),
        ("m", holds(models="mn", warm="m"), 1.0),
    ],
)
def test_a_warm_model_counts_whole_and_one_on_disk_half(model: str | None, there: Stock, part: float) -> None:
    assert warm_model(model, there) == part


@pytest.mark.parametrize(
    ("files", "there", "part"),
    [
        ((), holds("a"), 0.0),
        ((("a", HALF_BYTES),), NOTHING, 0.0),
        ((("a", HALF_BYTES),), holds("a"), 0.5),
        ((("a", HALF_BYTES), ("b", HALF_BYTES)), holds("a"), 0.5),
        ((("a", HALF_BYTES), ("b", 2 * HALF_BYTES)), holds("ab"), 0.75),
        ((("a", 0),), holds("a"), 0.0),
    ],
)
def test_data_counts_by_the_bytes_that_are_there(files: Files, there: Stock, part: float) -> None:
    assert data_nearby(files, there) == part


@pytest.mark.parametrize(
    ("rate", "rates", "part"),
    [
        (10, [10], 1.0),
        (10, [10, 20], 1.0),
        (20, [10, 20], 0.5),
        (10, [10, None], 1.0),
        (None, [10, None], 0.0),
        (0, [0, 5], 1.0),
        (5, [0, 5], 0.0),
    ],
)
def test_a_price_counts_beside_the_cheapest(rate: int | None, rates: list[int | None], part: float) -> None:
    assert low_price(rate, rates) == part


@pytest.mark.parametrize(
    ("near", "weights", "points"),
    [
        (Nearness(1.0, 0.0), Weights(200, 100, 0), 200),
        (Nearness(0.5, 0.75), Weights(200, 100, 0), 175),
        (Nearness(1.0, 1.0), Weights(0, 0, 999), 0),
    ],
)
def test_weights_say_what_the_parts_are_worth(near: Nearness, weights: Weights, points: int) -> None:
    assert near.points(weights) == points


NAMES = st.frozensets(st.sampled_from("abcd"), max_size=4)
STOCKS = st.builds(lambda files, models: Stock(files, models, frozenset(list(models)[:1])), NAMES, NAMES)


@given(
    st.lists(STOCKS, min_size=1, max_size=6),
    st.sampled_from([None, "a", "b", "e"]),
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 4 * GIB)), max_size=4, unique_by=lambda file: file[0]),
)
def test_many_nodes_at_once_get_what_each_gets_by_itself(
    there: list[Stock], model: str | None, files: list[tuple[str, int]]
) -> None:
    alone = [nearness(model, files, one).points(USUAL) for one in there]
    together = Shelves(there).points(model, files, USUAL)
    assert alone == ([0] * len(there) if together is None else together.tolist())


def city(*nodes: Node, rates: dict[PoolName, int] | None = None) -> State:
    quotas = {(FIRM, pool): Quota(GpuMilli(64_000), None, None) for pool in (A, B)}
    return State(nodes={node.id: node for node in nodes}, quotas=quotas, rates=rates or {})


def node(name: str, there: Stock = NOTHING, pool: PoolName = A, gpus: int = 4) -> Node:
    return Node(NodeId(name), pool, GpuMilli(1000 * gpus), holds=there)


def work(**changes: object) -> Waiting:
    base = Waiting(WorkloadId("job_1"), FIRM, (A,), 1, GpuMilli(1000), 0, NOW - timedelta(seconds=5), 600)
    return replace(base, **changes)  # type: ignore[arg-type]


def start(state: State, waiting: Waiting, scoring: Scoring = BEST_FIT) -> Start:
    _, decisions = decide(state, [Queued(waiting)], Policy(scoring=scoring), now=NOW)
    (decision,) = decisions.made
    assert isinstance(decision, Start)
    return decision


def test_of_equal_nodes_the_one_that_has_the_model_is_taken_and_the_decision_says_why() -> None:
    state = city(node("n1"), node("n2", holds(models="m")), node("n3", holds(models="m", warm="m")))
    told = start(state, work(model="m")).told
    assert told is not None and told.second is not None
    assert (told.best.node, told.best.model, told.second.node, told.second.model) == ("n3", 1.0, "n2", ON_DISK)
    assert told.best.total - told.best.packing == USUAL.model and told.best.packing == told.second.packing


def test_of_equal_nodes_the_one_that_has_the_data_is_taken_by_every_worker_of_a_gang() -> None:
    state = city(node("n1"), node("n2", holds("a")))
    assert start(state, work(files=(("a", 8 * GIB),), workers=3)).placement.nodes == ("n2",) * 3
    both = start(state, work(files=(("a", 8 * GIB),), workers=6)).placement.nodes
    assert sorted(both) == ["n1"] * 2 + ["n2"] * 4


@pytest.mark.parametrize(("cost", "taken"), [(199, "n2"), (201, "n1")])
def test_a_warm_model_is_worth_its_weight_of_fragmentation_and_no_more(cost: int, taken: str) -> None:
    def packing(candidates: Candidates) -> Ints:
        return np.where(candidates.node == 1, -cost, 0).astype(np.int64)

    state = city(node("n1"), node("n2", holds(models="m", warm="m")))
    told = start(state, work(model="m"), Scoring(packing)).told
    assert told is not None and told.best.node == taken
    assert {told.best.packing, told.second.packing if told.second else None} == {-cost, 0}


@pytest.mark.parametrize(
    ("ranks", "rates", "there", "taken"),
    [
        ((), {A: 20, B: 10}, NOTHING, A),  # the order of preference stands
        ((0, 1), {A: 20, B: 10}, NOTHING, A),
        ((0, 0), {A: 20, B: 10}, NOTHING, B),
        ((0, 0), {A: 10, B: 20}, NOTHING, A),
        ((0, 0), {A: 10, B: 10}, NOTHING, A),
        ((0, 0), {A: 10}, NOTHING, A),
        ((0, 0), {B: 10}, NOTHING, B),
        ((0, 0), {A: 20, B: 11}, holds(models="m", warm="m"), A),  # a warm model is worth half of the price
        ((0, 0), {A: 20, B: 10}, holds(models="m"), B),
    ],
)
def test_of_pools_that_are_liked_equally_the_cheaper_one_is_taken(
    ranks: tuple[int, ...], rates: dict[PoolName, int], there: Stock, taken: PoolName
) -> None:
    state = city(node("n1", there), node("n2", pool=B), rates=rates)
    assert start(state, work(pools=(A, B), ranks=ranks, model="m")).placement.pool == taken


def test_nobody_waits_for_a_cheaper_pool() -> None:
    state = city(node("n1"), rates={A: 20, B: 10})
    assert start(state, work(pools=(A, B), ranks=(0, 0))).placement.pool == A
