"""The kernel syncs a file while the loop goes on: Linux's AIO, whose completions wake the loop like a socket does."""

import asyncio
import contextlib
from collections.abc import Callable

from caio.abstract import AbstractOperation

CLOSE_SECONDS = 10


class KernelSync:
    """One sync at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises OSError where the kernel offers none, or a sandbox forbids it."""
        try:
            from caio.linux_aio import Context, Operation  # which asks the kernel as it is imported

            self._context = Context(1)
        except (ImportError, SystemError) as error:
            raise OSError("Linux's AIO cannot be had here") from error
        self._loop = loop
        self._fdsync = Operation.fdsync
        self._operation: AbstractOperation | None = None
        self._done: Callable[[bool], None] | None = None
        loop.add_reader(self._context.fileno, self._look)

    def begin(self, fd: int, done: Callable[[bool], None]) -> bool:
        """Sync what was written to `fd`; `done` is told on the loop whether all of it is on disk.

        False where the kernel does not take it; `done` is not called then.
        """
        operation = self._fdsync(fd)
        try:
            if self._context.submit(operation) != 1:
                return False
        except (OverflowError, SystemError, ValueError):  # too busy, what else errno says, not this file
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
