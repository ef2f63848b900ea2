"""No engine process outlives the one that started it."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def die_with_parent(parent_pid: int) -> None:
    """Be killed by the kernel when the thread that started this process ends: prctl(2), PR_SET_PDEATHSIG."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before the line above
        os._exit(1)
