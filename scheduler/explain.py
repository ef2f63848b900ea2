"""Why a job stands where it stands, what would move it, and the queue with a reason for each place."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from quotas.vocabulary import FirmId
from scheduler.adapters import store
from scheduler.adapters.tables import AttemptRow, WorkloadRow
from scheduler.cycle import gpus
from scheduler.facts import load_state
from scheduler.index import indexed
from scheduler.lifetimes import seconds_left
from scheduler.lines import rank
from scheduler.ordering import Standing, Turn, in_order
from scheduler.preemption import Standings
from scheduler.sharing import NO_QUOTA
from scheduler.snapshot import State, Waiting
from scheduler.terms import Terms
from scheduler.vocabulary import JOB_OVER, EndCause, JobState, WaitReason

_REMEDIES = {
    WaitReason.NEW: "the next cycle, within a second or two",
    WaitReason.NO_QUOTA: "the end of the firm's own work in the pool, or a larger quota",
    WaitReason.NOT_LENT: "the end of work in its cohort, or a larger quota of its own",
    WaitReason.RECLAIM: "the end of work that borrows: it is told to stop, and has its minimum runtime and its grace",
    WaitReason.NO_ROOM: "the end of work that runs in the pool, or another pool in its list",
    WaitReason.NO_NODE: "a node that comes up or is opened again in one of its pools",
    WaitReason.BEHIND: "the start of the work before it; a shorter expected duration may let it in earlier",
    WaitReason.NO_MONEY: "a top-up, a voucher, or the end of other work whose money is held",
    WaitReason.NO_PRICE: "a tariff for the pool",
    WaitReason.BACKOFF: "the end of the pause",
    WaitReason.WINDOW: "the end of that time; a shorter duration or a program with checkpoints may let it in before",
    WaitReason.AFTER: "the end of the work it waits for, in the way it waits for",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """`position` counts from 1 in the order in which waiting work is considered."""

    job: WorkloadRow
    sentence: str
    rule: str | None
    would_start: str | None
    standing: str | None
    position: int | None
    waiting: int
    pool: str | None  # where it is placed …
    told: Mapping[str, Any] | None  # … and how that place scored


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the queue, as if everything before it got its place.

    `promised_first`: by what runs now its firm's quota covers it, so it goes before all that borrows as long as its
    firm's work before it cannot start.
    """

    position: int
    workload: WorkloadRow
    standing: str
    promised_first: bool


async def queue(tx: AsyncSession, terms: Terms, *, now: datetime) -> list[Place]:
    """Everything that waits, in the order in which it is considered."""
    state = await load_state(tx, terms, now=now)
    rows = {row.id: row for row in await store.queued(tx)}
    turns = [turn for turn in in_order(state) if turn.workload.id in rows]
    told = standings(turns, state)
    return [Place(i, rows[turn.workload.id], why, first) for i, (turn, why, first) in enumerate(told, start=1)]


def standings(turns: Sequence[Turn], state: State) -> Iterator[tuple[Turn, str, bool]]:
    """Each place with what it rests on: its firm's share and history, and what puts it behind its firm's own work.

    With that, whether it is `promised_first` (see `Place`).
    """
    seen, index = indexed(state)
    by_what_runs = Standings(index.sharing, index.held)
    before: dict[FirmId, Waiting] = {}
    for turn in turns:
        work = turn.workload
        first = turn.standing is Standing.BORROWS and any(by_what_runs.is_promised(work, pool) for pool in work.pools)
        told = f"{_standing(turn, seen)}; {_inside(work, before.get(work.firm_id))}"
        yield turn, f"{told}; {_FIRST}" if first else told, first
        before[work.firm_id] = work


async def why(tx: AsyncSession, job: WorkloadRow, terms: Terms, *, now: datetime) -> Explanation:
    """The rule that holds a job, what would let it start and its place; what is placed, with the score of its place."""
    places = await queue(tx, terms, now=now)
    mine = next((place for place in places if place.workload.id == job.id), None)
    reason = WaitReason(job.wait_reason) if job.wait_reason else None
    live = await store.live_attempt(tx, job.id)
    return Explanation(
        job,
        _sentence(job, reason, live),
        reason.sentence if reason else None,
        _REMEDIES[reason] if reason else None,
        mine.standing if mine else None,
        mine.position if mine else None,
        len(places),
        live.pool if live else None,
        live.told if live else None,
    )


def expected_finish(job: WorkloadRow, *, now: datetime) -> datetime | None:
    """When what is left of it is expected to be done; None where nobody knows.

    What runs is judged by its progress where it reports one, else by its expected duration: once that has passed, or
    when it has been told to stop, nothing is known. What is safe in a checkpoint need not run again.
    """
    left = seconds_left(job.expected_seconds, job.kept_ms)
    if left is None or job.stop_requested_at is not None or job.pause_requested_at is not None:
        return None
    match JobState(job.state):
        case JobState.QUEUED:
            return max(now, job.eta) + timedelta(seconds=left) if job.eta else None
        case JobState.STARTING:
            return now + timedelta(seconds=left)
        case JobState.RUNNING if job.running_since is not None:
            return _running_until(job, job.running_since, left, now=now)
        case _:
            return None


def _running_until(job: WorkloadRow, since: datetime, left: int, *, now: datetime) -> datetime | None:
    step, total = (job.progress or {}).get("step", 0), (job.progress or {}).get("total_steps", 0)
    if step and total:  # a program that goes on from a checkpoint counts the steps before it too
        worked = timedelta(milliseconds=job.kept_ms) + (now - since)
        return now + worked * max(0, total / step - 1)
    expected = since + timedelta(seconds=left)
    return expected if expected > now else None


def _standing(turn: Turn, state: State) -> str:
    match turn.standing:
        case Standing.PROMISED:
            return f"within quota: with it and what is before it, its firm uses {turn.share:.0%} of its own"
        case Standing.BORROWS:
            key = turn.workload.firm_id, turn.pool
            above = state.lately.get(key, 0) - state.quotas.get(key, NO_QUOTA).nominal
            lately = f", and held {gpus(above)} above it lately" if above > 0 else ""
            return f"borrows: with it and what is before it, its firm has {turn.share:.0%} above its quota{lately}"


_FIRST = "before all that borrows as long as its firm's work before it cannot start"
_RANKS = ("a later class", "a lower priority", "a less tight deadline", "it came later", "its id")


def _inside(work: Waiting, before: Waiting | None) -> str:
    """What puts it behind its firm's work before it: the first part of the rank in which they differ."""
    if before is None:
        return "the first of its firm"
    if rank(before) > rank(work):
        return f"after {before.id} of its firm: that is within quota"
    differs = next(i for i, (one, other) in enumerate(zip(rank(before), rank(work), strict=True)) if one != other)
    return f"after {before.id} of its firm: {_RANKS[differs]}"


def _sentence(job: WorkloadRow, reason: WaitReason | None, live: AttemptRow | None) -> str:
    if reason is not None:
        said = job.wait_detail or ""
        detail = f" ({said})" if said and said != reason.sentence else ""
        evicted = job.last_message if job.last_cause == EndCause.EVICTED else None
        before = f" Its last attempt was stopped: {evicted}." if evicted and evicted not in said else ""
        return f"{reason.sentence[:-1]}{detail}.{before}"
    if job.pause_requested_at is not None and job.state in (JobState.STARTING, JobState.RUNNING):
        return "It has been told to pause and has its grace period to keep a checkpoint."
    if job.stop_requested_at is not None and job.state not in JOB_OVER:
        return "It has been told to stop and has its grace period."
    if live is not None and live.stop_requested_at is not None:
        told = f": {live.stop_message}" if live.stop_message else ""
        return f"It has been told to stop and has its grace period to keep a checkpoint{told}."
    match JobState(job.state):
        case JobState.STARTING:
            return "It is placed; its node prepares, free of charge."
        case JobState.RUNNING:
            return "It runs."
        case JobState.PAUSED:
            return f"It is {job.pause_reason or 'paused'}; heliu job resume {job.id} queues it again."
        case state:
            return f"It is over: {state.value}{f' ({job.last_message})' if job.last_message else ''}."
