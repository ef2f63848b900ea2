"""The runner's right to run, measured by its own clock (invariant S2).

`CLOCK_BOOTTIME` also counts while the machine sleeps. Two guards act at the end of a lease: a thread of the runner,
which kills the program and leaves, and a kernel timer, which kills the runner even when it is stopped or starved; its
program then dies with it (`process.die_with_parent`).
"""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable

KERNEL_SLACK_SECONDS = 1.0
"""How long after the end of a lease the kernel timer fires. A successor must start later than that."""

_CLOCK_BOOTTIME = 7
_TIMER_ABSTIME = 1


def boottime() -> float:
    """Seconds on a clock that never goes back and never pauses."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),  # 0: SIGEV_SIGNAL
        ("padding", ctypes.c_byte * 48),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class KernelTimer:
    """A POSIX timer that sends SIGKILL to this very process: timer_create(2)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._id = ctypes.c_void_p()
        event = _SigEvent(signo=signal.SIGKILL, notify=0)
        if self._libc.timer_create(_CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._id)) != 0:
            raise OSError(ctypes.get_errno(), "timer_create failed")

    def fire_at(self, when: float) -> None:
        """Kill at `when` on the boottime clock; a time that has passed kills at once."""
        nanoseconds = max(int(when * 1e9), 1)
        spec = _TimerSpec(value=_Timespec(*divmod(nanoseconds, 1_000_000_000)))
        if self._libc.timer_settime(self._id, _TIMER_ABSTIME, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timer_settime failed")

    def disarm(self) -> None:
        """Never fire, until told again."""
        self._libc.timer_settime(self._id, 0, ctypes.byref(_TimerSpec()), None)


class Lease:
    """When this process must have stopped. Renewed by every answer of the control plane, from when it was asked."""

    def __init__(self, on_end: Callable[[], None], *, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._on_end = on_end
        self._until: float | None = None
        self._changed = threading.Condition()
        self._over = False
        self._kernel = KernelTimer()
        threading.Thread(target=self._guard, name="lease-guard", daemon=True).start()

    def renew(self, asked_at: float, seconds: float) -> None:
        """Hold it until `asked_at + seconds`; an older answer never shortens what a newer one gave."""
        with self._changed:
            until = asked_at + seconds
            if self._over or (self._until is not None and until <= self._until):
                return
            self._until = until
            self._kernel.fire_at(until + KERNEL_SLACK_SECONDS)
            self._changed.notify()

    def remaining(self) -> float:
        """Seconds left; 0 when it is over or was never held."""
        with self._changed:
            if self._until is None or self._over:
                return 0.0
            return max(0.0, self._until - self._clock())

    def close(self) -> None:
        """All that it guarded has ended: no guard acts any more."""
        with self._changed:
            self._over = True
            self._kernel.disarm()
            self._changed.notify()

    def _guard(self) -> None:
        with self._changed:
            while not self._over:
                if self._until is None:
                    self._changed.wait()
                    continue
                left = self._until - self._clock()
                if left <= 0:
                    self._over = True
                    break
                self._changed.wait(left)
            else:
                return
        self._on_end()


def exit_now(code: int) -> None:
    """Leave without waiting for threads or `finally` blocks."""
    os._exit(code)
