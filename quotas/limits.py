"""Quota as data over time: which version is in force at an instant, and whether an ask fits under every limit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from kit.errors import InvalidInput
from kit.units import MILLI_PER_GPU, GpuMilli
from quotas.vocabulary import Ceilings, EffectiveLimits, FirmId, LimitKind, Overrun, PoolName, RequestState, Use

MAX_NOMINAL = GpuMilli(1_000_000 * MILLI_PER_GPU)
"""A million accelerators: beyond it a number is a typing error."""


@dataclass(frozen=True, slots=True)
class QuotaVersion:
    """What one firm may use of one pool from `effective_from` on, until a later version replaces it.

    `version` is the order of writing; of two versions that start at the same instant the later written one holds.
    """

    version: int
    firm_id: FirmId
    pool: PoolName
    nominal: GpuMilli
    effective_from: datetime
    borrowing: GpuMilli | None = None
    """The most it may use above nominal; None means as much as its cohort has."""
    lending: GpuMilli | None = None
    """The most of its nominal that others may use while it does not; None means all of it."""


def in_force(versions: Iterable[QuotaVersion], *, at: datetime) -> dict[tuple[FirmId, PoolName], QuotaVersion]:
    """Per firm and pool the version in force at `at`; a pair that has none yet is absent."""
    chosen: dict[tuple[FirmId, PoolName], QuotaVersion] = {}
    for one in versions:
        if one.effective_from > at:
            continue
        before = chosen.get((one.firm_id, one.pool))
        if before is None or (before.effective_from, before.version) < (one.effective_from, one.version):
            chosen[one.firm_id, one.pool] = one
    return chosen


def grant_state(*, asked: GpuMilli, granted: GpuMilli) -> RequestState:
    """What a grant makes of a request. Raises InvalidInput for more than was asked."""
    if granted > asked:
        raise InvalidInput(
            f"{granted} thousandths of an accelerator are more than the {asked} that were asked for.",
            code="grant_above_request",
            hint="Grant at most what was asked; more is set directly.",
        )
    return RequestState.GRANTED if granted == asked else RequestState.PARTLY_GRANTED


def valid_nominal(gpu_milli: int) -> GpuMilli:
    """`gpu_milli` as a quota. Raises InvalidInput below zero or beyond a million accelerators."""
    if not 0 <= gpu_milli <= MAX_NOMINAL:
        raise InvalidInput(
            f"A quota is between 0 and {MAX_NOMINAL} thousandths of an accelerator; got {gpu_milli}.",
            code="quota_range",
            hint="One accelerator is 1000.",
        )
    return GpuMilli(gpu_milli)


NO_CEILINGS: Final = Ceilings()
NOTHING: Final = Use()


def tighter(one: Ceilings, other: Ceilings) -> Ceilings:
    """Of each limit the smaller one; a limit that neither has is none."""
    return Ceilings(
        gpu_milli_at_once=_least(one.gpu_milli_at_once, other.gpu_milli_at_once),
        jobs_at_once=_least(one.jobs_at_once, other.jobs_at_once),
        gpu_ms_per_period=_least(one.gpu_ms_per_period, other.gpu_ms_per_period),
        tokens_per_period=_least(one.tokens_per_period, other.tokens_per_period),
    )


_LIMITED: Final[tuple[tuple[LimitKind, Callable[[Ceilings], int | None], Callable[[Use], int]], ...]] = (
    (LimitKind.JOBS_AT_ONCE, lambda ceilings: ceilings.jobs_at_once, lambda use: use.jobs),
    (LimitKind.GPUS_AT_ONCE, lambda ceilings: ceilings.gpu_milli_at_once, lambda use: use.gpu_milli),
    (LimitKind.GPU_TIME, lambda ceilings: ceilings.gpu_ms_per_period, lambda use: use.gpu_ms),
    (LimitKind.TOKENS, lambda ceilings: ceilings.tokens_per_period, lambda use: use.tokens),
)
assert [kind for kind, *_ in _LIMITED] == list(LimitKind), "the order in which limits are checked is LimitKind's"


def first_overrun(limits: EffectiveLimits, *, firm: Use, project: Use, asked: Use) -> Overrun | None:
    """The first limit that `asked` more would break, in the order of LimitKind, the firm's before the project's."""
    scopes = (("firm", limits.firm, firm), ("project", limits.project, project))
    for kind, limit_of, amount_of in _LIMITED:
        more = amount_of(asked)
        if not more:
            continue
        for scope, ceilings, used in scopes:
            limit = limit_of(ceilings)
            if limit is not None and amount_of(used) + more > limit:
                return Overrun(kind, scope, limit, amount_of(used), more)
    return None


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
