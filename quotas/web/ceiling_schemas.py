"""What limits look like on the wire."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from kit.units import MAX_AMOUNT
from kit.web import Body, View
from quotas.web.schemas import INT32_MAX, Id, Instant, Milli, Paragraph, ShortLine

Count = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]


class CeilingsIn(Body):
    """Without a project: the firm's own. A limit that is left out is none."""

    firm_id: Id
    project_id: Id | None = None
    gpu_milli_at_once: Milli | None = None
    jobs_at_once: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    gpu_ms_per_period: Count | None = None
    tokens_per_period: Count | None = None
    effective_from: Instant | None = None
    reason: Paragraph | None = None


class RateLimitIn(Body):
    """Over a firm, over every firm at a model, or over one firm at one model. A limit that is left out is none."""

    firm_id: Id | None = None
    model: ShortLine | None = None
    requests_per_minute: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    tokens_per_minute: Count | None = None
    requests_at_once: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    reason: Paragraph | None = None


class RateLimitOut(View):
    firm_id: str | None
    model: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    requests_at_once: int | None
    set_at: datetime
    set_by: str
    reason: str | None


class CeilingsOut(View):
    gpu_milli_at_once: int | None
    jobs_at_once: int | None
    gpu_ms_per_period: int | None
    tokens_per_period: int | None


class CeilingVersionOut(CeilingsOut):
    firm_id: str
    project_id: str | None
    effective_from: datetime
    set_at: datetime
    set_by: str
    reason: str | None


class UseOut(View):
    gpu_ms: int
    tokens: int


class EffectiveLimitsOut(View):
    """`used` is what the project has used in the month of `at`."""

    firm_id: str
    project_id: str
    at: datetime
    firm: CeilingsOut
    project: CeilingsOut
    effective: CeilingsOut
    used: UseOut
