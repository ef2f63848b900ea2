"""What a program tells its runner, as JSON lines on the pipe named by HELIU_REPORT_FD."""

import os
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from scheduler.node.protocol import MESSAGE_CHARS_MAX, Cause, Progress, Wire

REPORT_FD = "HELIU_REPORT_FD"


class Started(Wire):
    """The model is loaded and the work itself begins: the paid clock starts."""

    event: Literal["started"] = "started"


class Progressed(Progress):
    event: Literal["progress"] = "progress"


class Checkpointed(Wire):
    """`saved/<step>.tar` is packed and whole: the work up to here can be taken up by another attempt."""

    event: Literal["checkpointed"] = "checkpointed"
    step: Annotated[int, Field(ge=0)]


class Failed(Wire):
    """Why the program is about to end with an exit code other than 0."""

    event: Literal["failed"] = "failed"
    cause: Annotated[Cause, Field(strict=False)]
    message: Annotated[str, Field(max_length=MESSAGE_CHARS_MAX)]


Event = Started | Progressed | Checkpointed | Failed
_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse_event(line: bytes) -> Event:
    """Raises ValueError for anything that is not an event."""
    return _EVENTS.validate_json(line)


class Report:
    """The program's end of the pipe. Children do not inherit it; without a runner it says nothing."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    @classmethod
    def from_environment(cls) -> "Report":
        """The pipe the runner opened; its name leaves the environment."""
        named = os.environ.pop(REPORT_FD, None)
        return cls(int(named) if named is not None else None)

    def started(self) -> None:
        self._send(Started())

    def progress(self, step: int, total_steps: int, **metrics: float) -> None:
        self._send(Progressed(step=step, total_steps=total_steps, metrics=metrics))

    def checkpointed(self, step: int) -> None:
        self._send(Checkpointed(step=step))

    def failed(self, cause: Cause, message: str) -> None:
        self._send(Failed(cause=cause, message=message[:MESSAGE_CHARS_MAX]))

    def _send(self, event: Event) -> None:
        if self._fd is None:
            return
        left = (event.model_dump_json() + "\n").encode()
        while left:
            left = left[os.write(self._fd, left) :]
