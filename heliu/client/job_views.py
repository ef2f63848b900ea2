"""What the platform answers about quotes, jobs, files and pools."""

from datetime import datetime
from typing import Any

from heliu.client.people_views import View


class Offer(View):
    pool: str
    tariff_id: str
    min_micro_yuan: int
    max_micro_yuan: int
    voucher_pays_min_micro_yuan: int
    voucher_pays_max_micro_yuan: int
    cash_min_micro_yuan: int
    cash_max_micro_yuan: int
    voucher_ids: list[str]
    explanation: list[str]
    affordable: bool


class Quote(View):
    """Price and time of a job; `max_micro_yuan` caps the charge of the job submitted with it."""

    id: str
    min_micro_yuan: int
    max_micro_yuan: int
    voucher_pays_max_micro_yuan: int
    cash_max_micro_yuan: int
    affordable: bool
    offers: list[Offer]
    expected_start: datetime | None
    expected_finish: datetime | None
    estimated: bool
    wait_detail: str
    expected_seconds: int
    max_runtime_seconds: int
    basis: str
    expires_at: datetime


class Attempt(View):
    id: str
    state: str
    pool: str
    nodes: list[str]
    started_at: datetime | None
    ended_at: datetime | None
    cause: str | None
    message: str | None
    ran_ms: int | None


class Artifact(View):
    id: str
    name: str
    kind: str
    sha256: str
    size_bytes: int
    meta: dict[str, Any]


class Job(View):
    id: str
    name: str
    recipe: str | None
    state: str
    wait_reason: str | None
    wait_detail: str | None
    expected_start: datetime | None
    expected_finish: datetime | None
    progress: dict[str, Any] | None
    quote_id: str | None
    charged_micro_yuan: int
    cause: str | None
    message: str | None
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state in ("succeeded", "failed", "cancelled")


class JobDetail(Job):
    attempts: list[Attempt]
    artifacts: list[Artifact]


class Event(View):
    cursor: str
    at: datetime
    topic: str
    body: dict[str, Any]


class LogLine(View):
    cursor: str
    at: datetime
    text: str


class Upload(View):
    id: str
    name: str
    size_bytes: int
    received_bytes: int
    sha256: str
    state: str


class Pool(View):
    name: str
    nodes: int
    gpu_milli: int
    placed_milli: int
    quota_milli: int | None
    used_milli: int
