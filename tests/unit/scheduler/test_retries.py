"""What follows the end of an attempt, cause by cause."""

from typing import Any

import pytest

from scheduler.retries import Again, Finish, Next, Rest, RetryPolicy, after_end
from scheduler.vocabulary import EndCause as End
from scheduler.vocabulary import JobState, WorkloadKind

POLICY = RetryPolicy(setups=2, losses=5, pause_seconds=2, pause_seconds_max=60, healthy_ms=1000)
SUCCEEDED, FAILED, CANCELLED = (Finish(s) for s in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED))


def following(
    cause: End, *, failures: int = 0, ran_ms: int = 0, stop: bool = False, replica: bool = False, **owner: Any
) -> Next:
    kind = WorkloadKind.REPLICA if replica else WorkloadKind.JOB
    return after_end(kind, cause, failures=failures, ran_ms=ran_ms, stop_requested=stop, policy=POLICY, **owner)


@pytest.mark.parametrize(
    ("cause", "failures", "expected"),
    [
        (End.DONE, 0, SUCCEEDED),
        (End.PROGRAM_ERROR, 0, FAILED),
        (End.TIME_LIMIT, 0, FAILED),
        (End.CANCELLED, 0, CANCELLED),
        (End.SETUP, 0, Again(1, 2)),
        (End.SETUP, 1, Again(2, 4)),
        (End.SETUP, 2, FAILED),
        (End.LEASE_LOST, 2, Again(3, 8)),
        (End.NODE_LOST, 4, Again(5, 32)),
        (End.PLATFORM, 5, FAILED),
        (End.EVICTED, 9, Again(9, 0)),
        (End.UNPAID, 1, Again(1, 0)),
        (End.SPENDING_CAP, 0, FAILED),
    ],
)
def test_a_job_is_tried_again_by_cause(cause: End, failures: int, expected: Next) -> None:
    assert following(cause, failures=failures) == expected


@pytest.mark.parametrize(
    ("errors", "retries", "expected"),
    [(0, 0, FAILED), (0, 1, Again(0, 2)), (1, 1, FAILED), (2, 5, Again(0, 8)), (6, 9, Again(0, 60))],
)
def test_an_error_of_its_own_is_tried_again_as_often_as_its_owner_said_with_growing_pauses(
    errors: int, retries: int, expected: Next
) -> None:
    assert following(End.PROGRAM_ERROR, program_errors=errors, retries=retries) == expected
    assert following(End.TIME_LIMIT, program_errors=errors, retries=retries) == FAILED


@pytest.mark.parametrize("cause", list(End))
def test_what_its_owner_laid_aside_rests_instead_of_being_tried_again(cause: End) -> None:
    plain, resting = following(cause, failures=1), following(cause, failures=1, pause_requested=True)
    assert resting == (Rest(plain.failures) if isinstance(plain, Again) else plain)


@pytest.mark.parametrize("cause", [cause for cause in End if cause is not End.DONE])
def test_a_job_that_was_told_to_stop_is_cancelled_whatever_ended_it(cause: End) -> None:
    assert following(cause, stop=True) == CANCELLED


def test_a_job_that_succeeded_before_it_heard_the_wish_to_stop_has_succeeded() -> None:
    assert following(End.DONE, stop=True) == SUCCEEDED


@pytest.mark.parametrize("cause", list(End))
def test_a_replica_ends_only_when_it_was_told_to(cause: End) -> None:
    assert isinstance(following(cause, failures=1000, replica=True), Again)
    assert following(cause, replica=True, stop=True) == CANCELLED


def test_pauses_grow_to_a_limit_and_begin_anew_after_a_healthy_run() -> None:
    pauses = [following(End.PLATFORM, failures=n, replica=True) for n in (0, 3, 5, 500)]
    assert [p.pause_seconds for p in pauses if isinstance(p, Again)] == [2, 16, 60, 60]
    assert following(End.PLATFORM, failures=9, ran_ms=1000, replica=True) == Again(1, 2)


def test_the_platform_pays_for_what_the_platform_broke() -> None:
    free = {End.SETUP, End.NODE_LOST, End.LEASE_LOST, End.EVICTED, End.PLATFORM}
    assert {cause for cause in End if cause.is_free} == free
