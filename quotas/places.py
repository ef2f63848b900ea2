"""Places on lease: how many requests a key, a firm, or a firm at a model has running at once, over all gateways.

A place is held, not used up. Every holder runs within the places it leased, in memory; the sum of all leases never
exceeds the limit, so 8 at once are 8 over three gateways. A holder returns what it does not use when another asks, and
loses all when it does not renew in time. A limit that is lowered takes hold as requests end.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import notify
from kit.errors import InvalidInput
from quotas.vocabulary_people import PLACES_CHANNEL, PlaceAsk, PlaceLease, RateSubject

LEASE_SECONDS_MAX = 3600
_LEASE = text("""
    SELECT * FROM quotas.lease_places(:holder, CAST(:subjects AS text[]), CAST(:wanted AS integer[]),
        CAST(:used AS integer[]), :give_back, :now, :until)""")


async def lease_places(
    tx: AsyncSession, *, holder: str, asks: Sequence[PlaceAsk], lease_seconds: int, now: datetime
) -> list[PlaceLease]:
    """Have up to `wanted` places of each subject in hand, in all, for another `lease_seconds`.

    It is less when others have the rest, never less than are `used`. Asking again changes nothing but the end. A lease
    that was recalled does not grow until `return_places` answers. Subjects without such a limit are missing in the
    answer, which has them in order. Raises InvalidInput.
    """
    return await _lease(tx, holder, asks, lease_seconds, now, give_back=False)


async def return_places(
    tx: AsyncSession, *, holder: str, keeps: Sequence[PlaceAsk], lease_seconds: int, now: datetime
) -> list[PlaceLease]:
    """Keep what is `used` of each lease and give back the rest; it answers a recall. Again changes nothing.

    Take the rest out of use before calling. Raises InvalidInput.
    """
    return await _lease(tx, holder, keeps, lease_seconds, now, give_back=True)


async def recall_places(tx: AsyncSession, *, holder: str, subject: RateSubject, now: datetime) -> int:
    """Ask every other holder to return the places it does not use. Returns how many were asked.

    They hear `"<subject> <who asks>"` on PLACES_CHANNEL when this transaction commits, and see it on any lease.
    """
    await tx.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('quotas.places:' || :subject, 0))"), {"subject": subject}
    )
    done = await tx.execute(
        text("""UPDATE quotas.place_lease SET recalled = true
            WHERE subject = :subject AND holder <> :holder AND places > 0 AND until > :now RETURNING holder"""),
        {"subject": subject, "holder": holder, "now": now},
    )
    asked = len(done.all())
    if asked:
        await notify(tx, PLACES_CHANNEL, f"{subject} {holder}")
    return asked


async def forget_places(tx: AsyncSession, *, holder: str) -> int:
    """A holder starts anew, or ends: nothing of it runs, so all its places are free. Returns of how many subjects."""
    done = await tx.execute(
        text("DELETE FROM quotas.place_lease WHERE holder = :holder RETURNING 1"), {"holder": holder}
    )
    return len(done.all())


async def expire_places(tx: AsyncSession, *, now: datetime) -> int:
    """Forget the leases of holders that did not renew in time. Returns how many."""
    done = await tx.execute(
        text("""DELETE FROM quotas.place_lease WHERE (subject, holder) IN (
                SELECT subject, holder FROM quotas.place_lease WHERE until <= :now
                ORDER BY subject, holder LIMIT 5000 FOR UPDATE SKIP LOCKED) RETURNING 1"""),
        {"now": now},
    )
    return len(done.all())


async def _lease(
    tx: AsyncSession, holder: str, asks: Sequence[PlaceAsk], lease_seconds: int, now: datetime, *, give_back: bool
) -> list[PlaceLease]:
    if not holder:
        raise InvalidInput("A lease has a holder; the name was empty.", hint="Name one process.")
    if not 0 < lease_seconds <= LEASE_SECONDS_MAX:
        raise InvalidInput(f"A lease of places lasts between 1 and {LEASE_SECONDS_MAX} seconds; got {lease_seconds}.")
    if any(not 0 <= ask.used <= ask.wanted < 2**31 for ask in asks):
        raise InvalidInput("Places that are used are among those that are wanted, and both are counts.")
    rows = await tx.execute(
        _LEASE,
        {
            "holder": holder,
            "subjects": [ask.subject for ask in asks],
            "wanted": [ask.wanted for ask in asks],
            "used": [ask.used for ask in asks],
            "give_back": give_back,
            "now": now,
            "until": now + timedelta(seconds=lease_seconds),
        },
    )
    return [PlaceLease(row.subject, row.places, row.free, row.recalled, row.asked) for row in rows]
