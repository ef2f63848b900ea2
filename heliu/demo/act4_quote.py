"""Act 4: what will it cost and when will it be done, then submit; sent twice it is one job."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from heliu.client.job_views import Job, Quote
from heliu.demo.story import BASE_MODEL, POOL, Story
from kit.units import format_yuan

EXAMPLES = Path(__file__).parent / "examples"
LORE = EXAMPLES / "lore.jsonl"
STEPS = 30
NODE_SECONDS_MAX = 60


@dataclass(frozen=True, slots=True)
class FineTune:
    """The job, what was told before, and the name its adapter will have."""

    job: Job
    quote: Quote
    adapter: str


def quote_then_submit(story: Story, *, steps: int = STEPS) -> FineTune:
    """Upload the lore, ask for a quote, submit under it."""
    stage, jobs = story.stage, story.developer.jobs
    upload = story.developer.files.upload(LORE)
    stage.did(f"{LORE.name}: {upload.size_bytes:,} bytes uploaded", f"{upload.id}, SHA-256 {upload.sha256[:16]}…")
    adapter = f"lantern-lore-{story.cast.runs}"
    params = {"base_model": BASE_MODEL, "adapter_name": adapter, "steps": steps}
    wanted: dict[str, Any] = {"pools": [POOL], "inputs": {"data.jsonl": upload.id}, "params": params}
    _until_lent(story)
    quote = jobs.quote("lora-finetune", **wanted)
    _show(story, quote)
    key = f"demo-finetune-{story.firm_id}-{story.cast.runs}"
    job = jobs.submit("lora-finetune", **wanted, name="Lore of the lanterns", quote_id=quote.id, idempotency_key=key)
    stage.did("submitted under that quote", job.id)
    again = jobs.submit("lora-finetune", **wanted, name="Lore of the lanterns", quote_id=quote.id, idempotency_key=key)
    stage.check(again.id == job.id, "sent twice with one idempotency key: one job")
    return FineTune(job, quote, adapter)


def _until_lent(story: Story) -> None:
    """A platform that started a moment ago may not have seen its node yet; then nobody knows when a job begins."""
    deadline = monotonic() + NODE_SECONDS_MAX
    while not any(pool.name == POOL and pool.nodes for pool in story.developer.fleet.pools()):
        if monotonic() > deadline:
            return  # the quote says so
        sleep(0.5)


def _show(story: Story, quote: Quote) -> None:
    stage = story.stage
    offer = quote.offers[0]
    rows: list[Mapping[str, str]] = [
        _price("the whole cost", offer.min_micro_yuan, offer.max_micro_yuan),
        _price("the voucher pays", offer.voucher_pays_min_micro_yuan, offer.voucher_pays_max_micro_yuan),
        _price("cash pays", offer.cash_min_micro_yuan, offer.cash_max_micro_yuan),
    ]
    columns = {"what": "lora-finetune", "least": "at least>", "most": "at most>"}
    stage.table(f"Quote {quote.id}, holds until {_clock(quote.expires_at)}", columns, rows)
    stage.did(f"expected start {_clock(quote.expected_start)}: {quote.wait_detail}")
    stage.did(f"expected finish {_clock(quote.expected_finish)}, by {quote.basis}")
    halves = abs(2 * offer.voucher_pays_max_micro_yuan - offer.max_micro_yuan) <= 1
    stage.check(halves and offer.voucher_ids, f"voucher {', '.join(offer.voucher_ids)} pays half")
    stage.check(quote.affordable and quote.expected_finish, "the studio can pay it and knows when it is done")


def _price(what: str, least: int, most: int) -> Mapping[str, str]:
    return {"what": what, "least": format_yuan(least), "most": format_yuan(most)}


def _clock(instant: datetime | None) -> str:
    return f"{instant.astimezone():%H:%M:%S}" if instant else "unknown"
