"""Tokens billed against tokens the engines counted."""

from datetime import UTC, datetime, timedelta

import pytest

from serving.counting import ENGINE_LAG, Billed, Verdict, reconcile
from serving.vocabulary import EngineCount, EngineStartId, ModelName, ReplicaId

NOW = datetime(2026, 11, 2, tzinfo=UTC)


def engine(prompt: int, generation: int, *, ended: bool = False) -> EngineCount:
    """An engine that spent 9 + 1 tokens on its own warm-up."""
    return EngineCount(
        engine_start=EngineStartId("eng_1"),
        replica_id=ReplicaId("rep_1"),
        model=ModelName("m"),
        prompt_tokens=prompt + 9,
        generation_tokens=generation + 1,
        warmup_prompt_tokens=9,
        warmup_generation_tokens=1,
        started_at=NOW,
        counted_at=NOW,
        ended=ended,
    )


@pytest.mark.parametrize(
    ("counted", "billed", "ended", "busy", "verdict"),
    [
        ((100, 50), (100, 50), False, False, Verdict.EXACT),
        ((100, 50), (100, 50), True, False, Verdict.EXACT),
        ((0, 0), (0, 0), False, True, Verdict.EXACT),
        ((100, 50), (80, 40), False, True, Verdict.OPEN),
        ((100, 50), (100, 40), False, False, Verdict.PLATFORM_LOSS),
        ((100, 50), (100, 40), True, False, Verdict.PLATFORM_LOSS),
        ((100, 50), (100, 60), True, False, Verdict.UNSEEN),
        ((100, 50), (100, 60), False, False, Verdict.OVERBILLED),
        ((100, 50), (101, 40), False, False, Verdict.OVERBILLED),
    ],
)
def test_each_difference_has_a_name(
    counted: tuple[int, int], billed: tuple[int, int], ended: bool, busy: bool, verdict: Verdict
) -> None:
    (line,) = reconcile(
        {"eng_1": Billed(*billed)}, [engine(*counted, ended=ended)], busy=frozenset({"eng_1"} if busy else ())
    )
    assert line.verdict is verdict
    assert line.difference_prompt == counted[0] - billed[0]
    assert line.difference_generation == counted[1] - billed[1]


@pytest.mark.parametrize(
    ("answer_ended_before_the_report", "verdict"),
    [
        (-timedelta(seconds=1), Verdict.OPEN),
        (ENGINE_LAG, Verdict.OPEN),
        (ENGINE_LAG + timedelta(milliseconds=1), Verdict.OVERBILLED),
    ],
)
def test_an_engine_is_judged_once_it_had_time_to_count_the_last_answer(
    answer_ended_before_the_report: timedelta, verdict: Verdict
) -> None:
    billed = {"eng_1": Billed(100, 60, last_at=NOW - answer_ended_before_the_report)}
    (line,) = reconcile(billed, [engine(100, 50)], busy=frozenset())
    assert line.verdict is verdict


def test_usage_on_an_engine_nobody_knows_is_overbilled() -> None:
    (line,) = reconcile({"eng_ghost": Billed(1, 1)}, [], busy=frozenset())
    assert line.verdict is Verdict.OVERBILLED
