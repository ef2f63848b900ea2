"""When a budget alerts, what the message says and how it is signed: rules without a clock or a network.

Messages follow Standard Webhooks (webhook-id, webhook-timestamp, webhook-signature v1).
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

RETRIES: Final = tuple(timedelta(seconds=s) for s in (5, 300, 1800, 7200, 18_000, 36_000, 36_000))
"""How long to wait after each failed try; after the last one the message is dead until somebody replays it."""
HARD_STOP_AT = 100


def crossed(thresholds: Iterable[int], *, spent: int, amount: int) -> list[int]:
    """The thresholds, in per cent, that `spent` has reached, lowest first."""
    return sorted(one for one in set(thresholds) if spent * 100 >= one * amount)


def next_try(tries: int) -> timedelta | None:
    """How long to wait after so many failed tries; None: never again."""
    return RETRIES[tries - 1] if tries <= len(RETRIES) else None


def signing_secret(master: bytes, channel_id: str) -> str:
    """A channel's own secret, `whsec_…`; it is derived, so no database ever holds it."""
    digest = hmac.new(master, f"webhook:{channel_id}".encode(), hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(digest).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,…` over `id.timestamp.body`."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
