"""The replica host's end of its runner's report pipe: JSON lines, as scheduler/node/report.py reads them."""

import json
import os

REPORT_FD = "HELIU_REPORT_FD"
_MESSAGE_CHARS_MAX = 2_000


class Report:
    """Without a runner it says nothing. The engine does not inherit it."""

    def __init__(self) -> None:
        named = os.environ.pop(REPORT_FD, None)
        self._fd = int(named) if named is not None else None
        if self._fd is not None:
            os.set_inheritable(self._fd, False)

    def started(self) -> None:
        """The replica is ready: the paid clock starts."""
        self._send({"event": "started"})

    def failed(self, cause: str, message: str) -> None:
        """Why the host is about to end with an exit code other than 0."""
        self._send({"event": "failed", "cause": cause, "message": message[:_MESSAGE_CHARS_MAX]})

    def _send(self, event: dict[str, str]) -> None:
        if self._fd is not None:
            os.write(self._fd, (json.dumps(event) + "\n").encode())
