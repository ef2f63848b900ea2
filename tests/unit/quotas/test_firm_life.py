"""The life of a firm as a table: every state × every step."""

import itertools

import pytest

from kit.errors import Conflict
from quotas.firms import LEGAL, OVER, after, steps_from, triage
from quotas.vocabulary import FirmState, ReviewStep

S, R = FirmState, ReviewStep

EXPECTED = {
    (S.APPLIED, R.TAKE): S.IN_REVIEW,
    (S.APPLIED, R.APPROVE): S.ACTIVE,
    (S.APPLIED, R.REJECT): S.REJECTED,
    (S.IN_REVIEW, R.APPROVE): S.ACTIVE,
    (S.IN_REVIEW, R.REJECT): S.REJECTED,
    (S.ACTIVE, R.SUSPEND): S.SUSPENDED,
    (S.ACTIVE, R.CLOSE): S.CLOSED,
    (S.SUSPENDED, R.RESUME): S.ACTIVE,
    (S.SUSPENDED, R.CLOSE): S.CLOSED,
}


@pytest.mark.parametrize(("state", "step"), list(itertools.product(FirmState, ReviewStep)))
def test_a_step_leads_where_the_table_says_or_is_refused(state: FirmState, step: ReviewStep) -> None:
    if (state, step) in EXPECTED:
        assert after(state, step) is EXPECTED[state, step]
        return
    with pytest.raises(Conflict) as refusal:
        after(state, step)
    assert refusal.value.details["legal"] == [one.value for one in steps_from(state)]


def test_no_step_leaves_a_firm_that_is_over() -> None:
    assert {S.REJECTED, S.CLOSED} == OVER
    assert all(steps_from(state) == () for state in OVER)


def test_every_state_can_be_reached() -> None:
    assert {S.APPLIED, *LEGAL.values()} == set(FirmState)


def test_a_doubtful_application_starts_in_review_with_its_reason() -> None:
    assert triage(None).state is S.APPLIED
    assert (triage("look twice").state, triage("look twice").doubts) == (S.IN_REVIEW, ("look twice",))
