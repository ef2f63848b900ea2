"""The life of a firm: which state may follow which, by whose decision, and what each state allows."""

from dataclasses import dataclass
from typing import Final

from kit.errors import Conflict
from quotas.vocabulary import FirmState, ReviewStep

LEGAL: Final[dict[tuple[FirmState, ReviewStep], FirmState]] = {
    (FirmState.APPLIED, ReviewStep.TAKE): FirmState.IN_REVIEW,
    (FirmState.APPLIED, ReviewStep.APPROVE): FirmState.ACTIVE,
    (FirmState.APPLIED, ReviewStep.REJECT): FirmState.REJECTED,
    (FirmState.IN_REVIEW, ReviewStep.APPROVE): FirmState.ACTIVE,
    (FirmState.IN_REVIEW, ReviewStep.REJECT): FirmState.REJECTED,
    (FirmState.ACTIVE, ReviewStep.SUSPEND): FirmState.SUSPENDED,
    (FirmState.ACTIVE, ReviewStep.CLOSE): FirmState.CLOSED,
    (FirmState.SUSPENDED, ReviewStep.RESUME): FirmState.ACTIVE,
    (FirmState.SUSPENDED, ReviewStep.CLOSE): FirmState.CLOSED,
}

OVER: Final = frozenset({FirmState.REJECTED, FirmState.CLOSED})
"""A firm in these states never comes back; its USCC may be registered again."""

MUST_SAY_WHY: Final = frozenset({ReviewStep.REJECT, ReviewStep.SUSPEND, ReviewStep.CLOSE})


@dataclass(frozen=True, slots=True)
class Triage:
    """Where an application starts, and what a reviewer must look at before approving it."""

    state: FirmState
    doubts: tuple[str, ...]


def triage(doubt_about_uscc: str | None) -> Triage:
    """A clean application waits in the queue; a doubtful one goes to manual review with its reasons."""
    if doubt_about_uscc is None:
        return Triage(FirmState.APPLIED, ())
    return Triage(FirmState.IN_REVIEW, (doubt_about_uscc,))


def after(state: FirmState, step: ReviewStep) -> FirmState:
    """The state that follows. Raises Conflict (`illegal_firm_step`) naming the steps that are legal now."""
    following = LEGAL.get((state, step))
    if following is None:
        legal = steps_from(state)
        raise Conflict(
            f"A firm that is {state} cannot be taken through '{step}'.",
            code="illegal_firm_step",
            hint=f"Possible now: {', '.join(legal)}." if legal else "No step is possible: this state is final.",
            details={"state": state.value, "step": step.value, "legal": [one.value for one in legal]},
        )
    return following


def steps_from(state: FirmState) -> tuple[ReviewStep, ...]:
    """The steps that are legal from here, in the order the table lists them."""
    return tuple(step for (origin, step) in LEGAL if origin == state)
