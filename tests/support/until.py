"""Waiting for a condition with a deadline; tests never just sleep."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.05


def until(probe: Callable[[], T | None], *, seconds: float, what: str) -> T:
    """The first truthy value of `probe`. Raises AssertionError naming `what` when none came in `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        seen = probe()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s; last seen: {seen!r}"
        time.sleep(POLL_SECONDS)


async def until_async(probe: Callable[[], Awaitable[T | None]], *, seconds: float, what: str) -> T:
    """`until` for a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        seen = await probe()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s; last seen: {seen!r}"
        await asyncio.sleep(POLL_SECONDS)
