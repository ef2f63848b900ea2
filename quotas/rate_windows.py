"""Rate windows on lease: requests and tokens per minute, shared exactly by any number of gateways.

A window is one whole minute of UTC of one subject: a key, a firm, or a firm at a model. Every holder counts within what
it leased of the window, in memory; the sum of all leases never exceeds the limit, so 1,000 requests per minute are
1,000 over three gateways or thirty.

A holder is one life of one process: give it a new name at every start. What a dead holder leased may have been used,
so it counts as used until the minute is over, and is forgotten then. A limit that is changed holds from the next
minute on.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import notify
from kit.errors import InvalidInput
from kit.units import MAX_AMOUNT
from quotas.vocabulary_people import RATES_CHANNEL, RateAsk, RateLease, RateSubject

WINDOW_SECONDS = 60
KEPT_MINUTES = 1
"""How many minutes a window outlives its end, so that who is late finds what it leased."""

_LEASE = text("""
    SELECT * FROM quotas.lease_windows(:holder, :minute, CAST(:subjects AS text[]), CAST(:requests AS bigint[]),
        CAST(:tokens AS bigint[]), :give_back)""")


def minute_of(now: datetime) -> int:
    """The window an instant falls into: whole minutes since 1970, UTC."""
    return int(now.timestamp()) // WINDOW_SECONDS


async def lease_windows(
    tx: AsyncSession, *, holder: str, minute: int, asks: Sequence[RateAsk], now: datetime
) -> list[RateLease]:
    """Have up to `requests` and `tokens` of each subject's minute in hand, in all: less when others have the rest.

    What is asked for is the total, not what is to be added: asking again changes nothing, asking for less returns
    nothing. A lease that was recalled does not grow until `return_windows` answers. A subject without limits may
    be missing in the answer, which has them in order. The minute is the current one or a neighbour (the next may be
    leased ahead). One round trip. Raises InvalidInput.
    """
    return await _lease(tx, holder, minute, asks, now, give_back=False)


async def return_windows(
    tx: AsyncSession, *, holder: str, minute: int, keeps: Sequence[RateAsk], now: datetime
) -> list[RateLease]:
    """Keep that much of each lease (used, or reserved by requests that run) and give back the rest.

    Again changes nothing; keeping more than is leased changes nothing. It answers a recall: the lease may grow again.
    Take the rest out of use before calling. Raises InvalidInput.
    """
    return await _lease(tx, holder, minute, keeps, now, give_back=True)


async def recall_windows(tx: AsyncSession, *, holder: str, minute: int, subject: RateSubject) -> int:
    """Ask every other holder to return what it does not use of a minute. Returns how many were asked.

    They hear `"<subject> <minute> <who asks>"` on RATES_CHANNEL when this transaction commits, and see it on any lease.
    """
    # The window first, as everywhere: then nobody waits in a circle.
    await tx.execute(
        text("SELECT FROM quotas.rate_window WHERE minute = :minute AND subject = :subject FOR UPDATE"),
        {"minute": minute, "subject": subject},
    )
    done = await tx.execute(
        text("""UPDATE quotas.rate_lease SET recalled = true WHERE minute = :minute AND subject = :subject
            AND holder <> :holder AND requests + tokens > 0 RETURNING holder"""),
        {"minute": minute, "subject": subject, "holder": holder},
    )
    asked = len(done.all())
    if asked:
        await notify(tx, RATES_CHANNEL, f"{subject} {minute} {holder}")
    return asked


async def expire_windows(tx: AsyncSession, *, now: datetime) -> int:
    """Forget windows that are over, with what dead holders had of them. Returns how many."""
    done = await tx.execute(
        text("""DELETE FROM quotas.rate_window WHERE (minute, subject) IN (
                SELECT minute, subject FROM quotas.rate_window WHERE minute < :oldest
                ORDER BY minute, subject LIMIT 5000 FOR UPDATE SKIP LOCKED) RETURNING 1"""),
        {"oldest": minute_of(now) - KEPT_MINUTES},
    )
    return len(done.all())


async def _lease(
    tx: AsyncSession, holder: str, minute: int, asks: Sequence[RateAsk], now: datetime, *, give_back: bool
) -> list[RateLease]:
    _check(holder, minute, asks, now)
    rows = await tx.execute(
        _LEASE,
        {
            "holder": holder,
            "minute": minute,
            "subjects": [ask.subject for ask in asks],
            "requests": [ask.requests for ask in asks],
            "tokens": [ask.tokens for ask in asks],
            "give_back": give_back,
        },
    )
    return [
        RateLease(
            row.subject, minute, holder, row.requests_leased, row.tokens_leased, row.requests_free,
            row.tokens_free, row.recalled,
        )
        for row in rows
    ]  # fmt: skip


def _check(holder: str, minute: int, asks: Sequence[RateAsk], now: datetime) -> None:
    if not holder:
        raise InvalidInput("A lease has a holder; the name was empty.", hint="Name one life of one process.")
    if abs(minute - minute_of(now)) > 1:
        raise InvalidInput(
            f"Minute {minute} is not near: now is minute {minute_of(now)}.",
            code="minute_not_near",
            hint="Lease the minute that runs or the next; check the clock of this machine.",
        )
    if len({ask.subject for ask in asks}) < len(asks):
        raise InvalidInput("A subject is asked for once in a call.", code="subject_asked_twice")
    for ask in asks:
        if not (0 <= ask.requests <= MAX_AMOUNT and 0 <= ask.tokens <= MAX_AMOUNT):
            raise InvalidInput(
                f"{ask.requests} requests and {ask.tokens} tokens of {ask.subject} cannot be leased; "
                "both are between 0 and 2^53."
            )
