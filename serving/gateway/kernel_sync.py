"""The kernel syncs a file while the loop goes on: Linux's AIO, whose completions wake the loop like a socket does."""

import asyncio
import contextlib
from collections.abc import Callable

from caio.abstract import AbstractOperation
from caio.linux_aio import Context, Operation

CLOSE_SECONDS = 10


class KernelSync:
    """One sync at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises OSError where the kernel has none to offer."""
        self._loop = loop
        self._context = Context(1)
        self._operation: AbstractOperation | None = None
        self._done: Callable[[bool], None] | None = None
        loop.add_reader(self._context.fileno, self._look)

    def begin(self, fd: int, done: Callable[[bool], None]) -> bool:
        """Sync what was written to `fd`; `done` is told on the loop whether all of it is on disk.

        False where the kernel does not take it; `done` is not called then.
        """
        operation = Operation.fdsync(fd)
        try:
            if self._context.submit(operation) != 1:
                return False
        except (OSError, ValueError):
            return False
        self._operation, self._done = operation, done
        return True

    def close(self) -> None:
        """Wait for what is being synced, and stop."""
        self._loop.remove_reader(self._context.fileno)
        if self._operation is not None and self._context.process_events(1, 1, CLOSE_SECONDS):
            self._finish()

    def _look(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._context.poll()
        if self._context.process_events():
            self._finish()

    def _finish(self) -> None:
        operation, done = self._operation, self._done
        self._operation = self._done = None
        if operation is None or done is None:
            return
        try:
            operation.get_value()
        except SystemError:  # so it says that the file could not be synced
            done(False)
        else:
            done(True)
