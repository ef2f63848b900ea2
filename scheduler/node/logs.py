"""The attempt's log on its way to the control plane: numbered lines, kept until they are known to have arrived."""

import re
import threading
import unicodedata
from collections import deque

from scheduler.node.protocol import LOG_LINE_CHARS_MAX, LogLine

PENDING_CHARS_MAX = 8_000_000
"""Unsent text kept while the control plane is away; beyond it new lines are counted, not kept."""
TOTAL_CHARS_MAX = 64_000_000
"""What one attempt may log in all."""
BATCH_CHARS_MAX = 256_000

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # colours and cursor movements, ECMA-48


class LogBuffer:
    """Lines wait here under a growing number and are repeated until acknowledged. Thread-safe and bounded."""

    def __init__(self, *, pending_chars_max: int = PENDING_CHARS_MAX, total_chars_max: int = TOTAL_CHARS_MAX) -> None:
        self._lock = threading.Lock()
        self._pending: deque[LogLine] = deque()
        self._pending_chars = 0
        self._total_chars = 0
        self._dropped = 0
        self._seq = 0
        self._pending_chars_max = pending_chars_max
        self._total_chars_max = total_chars_max

    def append(self, text: str) -> None:
        """Take one line of output; a long one becomes several, an empty one none."""
        clean = printable(text)
        with self._lock:
            for start in range(0, len(clean), LOG_LINE_CHARS_MAX):
                self._take(clean[start : start + LOG_LINE_CHARS_MAX])

    def batch(self, lines_max: int) -> list[LogLine]:
        """The oldest lines not yet acknowledged."""
        with self._lock:
            chosen: list[LogLine] = []
            chars = 0
            for line in self._pending:
                chars += len(line.text)
                if len(chosen) == lines_max or (chosen and chars > BATCH_CHARS_MAX):
                    break
                chosen.append(line)
            return chosen

    def acknowledge(self, seq: int) -> None:
        """Forget the lines up to `seq`: they have arrived."""
        with self._lock:
            while self._pending and self._pending[0].seq <= seq:
                self._pending_chars -= len(self._pending.popleft().text)
            if self._dropped and self._pending_chars < self._pending_chars_max // 2:
                self._number(f"({self._dropped} lines were dropped here)")
                self._dropped = 0

    @property
    def is_empty(self) -> bool:
        """Whether every line has arrived."""
        with self._lock:
            return not self._pending

    def _take(self, text: str) -> None:
        if self._total_chars > self._total_chars_max:
            return
        self._total_chars += len(text)
        if self._total_chars > self._total_chars_max:
            self._number("(the log has reached its limit; what follows is not kept)")
        elif self._dropped or self._pending_chars + len(text) > self._pending_chars_max:
            self._dropped += 1
        else:
            self._number(text)

    def _number(self, text: str) -> None:
        self._seq += 1
        self._pending.append(LogLine(seq=self._seq, text=text))
        self._pending_chars += len(text)


def printable(text: str) -> str:
    """The line without what a terminal or a database could choke on: control and half characters."""
    if text.isprintable():
        return text
    plain = _ESCAPE.sub("", text).rstrip()
    return "".join(c if c == "\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in plain)
