"""Python's collector of cycles, for processes that make many objects and hardly a cycle."""

import gc


def look_rarely() -> None:
    """Look for cycles rarely from now on, and never among what is there already: it lives as long as the process.

    With its usual thresholds the collector takes a fifth of such a process's time, and finds next to nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
