"""Writes that come while one is under way go together in the next: as many as wait, in one transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Together(Generic[T, R]):
    """Group commit: `write` gets what came together, `at_most` at once, and answers for each in the same order.

    When a group fails, each of it is written alone, so that one bad write fails alone. Nobody waits longer than the
    write that is under way and the group before his; and where groups begin at least `apart` seconds after each other,
    so that a stream of single writes becomes few, no longer than that. The first one does not wait.
    """

    def __init__(
        self, write: Callable[[Sequence[T]], Awaitable[Sequence[R]]], *, at_most: int = 250, apart: float = 0.0
    ) -> None:
        self._write, self._at_most, self._apart = write, at_most, apart
        self._begin_at = 0.0
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def put(self, item: T) -> R:
        """Write it, with whatever else waits. Raises what its own write raised."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await done

    async def _work(self) -> None:
        time = asyncio.get_running_loop().time
        while self._waiting:
            await asyncio.sleep(self._begin_at - time())
            self._begin_at = time() + self._apart
            group, self._waiting = self._waiting[: self._at_most], self._waiting[self._at_most :]
            if not await self._try(group) and len(group) > 1:
                for one in group:
                    await self._try([one], last=True)

    async def _try(self, group: Sequence[tuple[T, "asyncio.Future[R]"]], *, last: bool = False) -> bool:
        try:
            answers = await self._write([item for item, _ in group])
        except Exception as error:
            for _, done in group:
                if (last or len(group) == 1) and not done.cancelled():
                    done.set_exception(error)
            return False
        for (_, done), answer in zip(group, answers, strict=True):
            if not done.cancelled():
                done.set_result(answer)
        return True
