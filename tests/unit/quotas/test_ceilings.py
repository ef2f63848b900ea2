"""Limits beyond nominal as a pure rule: the tighter holds, and the first that breaks is named."""

from datetime import UTC, datetime

import pytest

from quotas.limits import NO_CEILINGS, NOTHING, first_overrun, tighter
from quotas.vocabulary import Ceilings, EffectiveLimits, FirmId, LimitKind, ProjectId, Use

AT = datetime(2026, 11, 2, tzinfo=UTC)
JOB = Use(jobs=1, gpu_milli=1000, gpu_ms=60_000)


def limits(firm: Ceilings = NO_CEILINGS, project: Ceilings = NO_CEILINGS) -> EffectiveLimits:
    return EffectiveLimits(FirmId("firm_1"), ProjectId("prj_1"), AT, firm, project, tighter(firm, project))


def test_of_two_limits_the_smaller_holds_and_none_is_no_limit() -> None:
    one, other = Ceilings(gpu_milli_at_once=5, jobs_at_once=2), Ceilings(jobs_at_once=0, tokens_per_period=7)
    assert tighter(one, other) == tighter(other, one) == Ceilings(5, 0, None, 7)
    assert tighter(one, NO_CEILINGS) == one


@pytest.mark.parametrize(
    ("firm", "project", "used", "kind", "scope"),
    [
        (Ceilings(jobs_at_once=1), NO_CEILINGS, NOTHING, None, None),
        (Ceilings(jobs_at_once=0), NO_CEILINGS, NOTHING, LimitKind.JOBS_AT_ONCE, "firm"),
        (Ceilings(jobs_at_once=1), NO_CEILINGS, JOB, LimitKind.JOBS_AT_ONCE, "firm"),
        (NO_CEILINGS, Ceilings(gpu_milli_at_once=1999), JOB, LimitKind.GPUS_AT_ONCE, "project"),
        (NO_CEILINGS, Ceilings(gpu_milli_at_once=2000), JOB, None, None),
        (Ceilings(gpu_ms_per_period=119_999), NO_CEILINGS, JOB, LimitKind.GPU_TIME, "firm"),
        (Ceilings(tokens_per_period=0), NO_CEILINGS, Use(tokens=9), None, None),
        (Ceilings(0, 0, 0, 0), Ceilings(0, 0, 0, 0), NOTHING, LimitKind.JOBS_AT_ONCE, "firm"),
    ],
)
def test_the_first_limit_that_breaks_is_named(
    firm: Ceilings, project: Ceilings, used: Use, kind: LimitKind | None, scope: str | None
) -> None:
    over = first_overrun(limits(firm, project), firm=used, project=used, asked=JOB)
    assert (over.kind, over.scope) == (kind, scope) if over else kind is None
