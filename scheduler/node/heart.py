"""The thread that keeps an attempt's lease alive, whatever its program does, and carries its news."""

import threading
from collections.abc import Callable

from scheduler.node.client import Away, ControlPlane, Denied, FenceLost
from scheduler.node.lease import Lease
from scheduler.node.logs import LogBuffer
from scheduler.node.protocol import LOG_LINES_PER_HEARTBEAT_MAX, HeartbeatIn, Inventory, Plan, Progress

_AWAY_SECONDS = 0.5
_BACKLOG_SECONDS = 0.05


class Heart:
    """One heartbeat after the other, in its own thread. `on_stop(grace_seconds)` is called once."""

    def __init__(
        self,
        control: ControlPlane,
        lease: Lease,
        logs: LogBuffer,
        plan: Plan,
        *,
        on_stop: Callable[[int], None],
        on_fence_lost: Callable[[], None],
    ) -> None:
        self._control = control
        self._lease = lease
        self._logs = logs
        self._heartbeat_seconds = plan.heartbeat_seconds
        self._on_stop = on_stop
        self._on_fence_lost = on_fence_lost
        self._changed = threading.Condition()
        self._progress: Progress | None = None
        self._inventories: list[Inventory] = []
        self._started_untold = False
        self._stop_told = False
        self._hurry = False
        self._closed = False
        self._beats = 0  # answered heartbeats
        self._thread = threading.Thread(target=self._live, name="heart", daemon=True)

    def start(self) -> None:
        """Beat from now on."""
        self._thread.start()

    def started(self) -> None:
        """The paid clock has started: tell it before the next heartbeat, at once."""
        with self._changed:
            self._started_untold = True
            self._hurry = True
            self._changed.notify_all()

    def progress(self, progress: Progress) -> None:
        """Send this with the next heartbeat; a newer one replaces it."""
        with self._changed:
            self._progress = progress

    def inventories(self, inventories: list[Inventory]) -> None:
        """Send these with the next heartbeat; newer ones replace them."""
        with self._changed:
            self._inventories = inventories

    def flush(self) -> None:
        """Wait until everything known now has arrived, or the lease is over."""
        while self._lease.remaining() > 0:
            with self._changed:
                before = self._beats
                self._hurry = True
                self._changed.notify_all()
                answered = self._changed.wait_for(lambda seen=before: self._beats > seen, timeout=1)
                told = self._progress is None and not self._inventories and not self._started_untold
                if answered and told and self._logs.is_empty:
                    return

    def close(self) -> None:
        """Beat no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=15)

    def _live(self) -> None:
        while True:
            pause = self._beat()
            with self._changed:
                self._changed.wait_for(lambda: self._hurry or self._closed, timeout=pause)
                if self._closed:
                    return
                self._hurry = False

    def _beat(self) -> float:
        """Seconds until the next one."""
        try:
            self._tell_started()
            return self._tell_news()
        except FenceLost:
            self._on_fence_lost()
        except (Away, Denied):
            # A refusal that is not about the fence renews nothing either: the lease decides.
            return min(_AWAY_SECONDS, self._heartbeat_seconds)
        return self._heartbeat_seconds

    def _tell_started(self) -> None:
        with self._changed:
            untold = self._started_untold
        if untold:
            answer, asked_at = self._control.started()
            self._lease.renew(asked_at, answer.lease_seconds)
            with self._changed:
                self._started_untold = False

    def _tell_news(self) -> float:
        with self._changed:
            progress, inventories = self._progress, self._inventories
        lines = self._logs.batch(LOG_LINES_PER_HEARTBEAT_MAX)
        answer, asked_at = self._control.heartbeat(HeartbeatIn(progress=progress, inventories=inventories, log=lines))
        self._lease.renew(asked_at, answer.lease_seconds)
        if lines:
            self._logs.acknowledge(lines[-1].seq)
        with self._changed:
            self._beats += 1
            if self._progress is progress:
                self._progress = None
            if self._inventories is inventories:
                self._inventories = []
            first_stop = answer.command == "stop" and not self._stop_told
            self._stop_told = self._stop_told or first_stop
            self._changed.notify_all()
        if first_stop:
            self._on_stop(answer.grace_seconds)
        return _BACKLOG_SECONDS if len(lines) == LOG_LINES_PER_HEARTBEAT_MAX else self._heartbeat_seconds
