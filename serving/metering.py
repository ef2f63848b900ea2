"""From an engine's chunks to one usage record: what was used, what is billed of a cut stream or a killed gateway.

Policy: a client that goes away stops the engine and pays what was generated until then. After `kill -9` of a gateway
the last count it logged is billed; what the engine counted above that is the platform's loss.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

COUNT_EVERY_MS = 200
"""Running counts of open streams are logged at least this often (invariant G1)."""


class Outcome(StrEnum):
    """How a request that used tokens ended."""

    COMPLETED = "completed"
    CLIENT_LEFT = "client_left"
    ENGINE_FAILED = "engine_failed"
    DRAINED = "drained"  # the gateway stopped before the stream ended
    GATEWAY_KILLED = "gateway_killed"  # billed at the last count logged


class Tokens(NamedTuple):
    """A usage: all prompt tokens, the cached ones among them, and all output tokens."""

    input: int = 0
    cached_input: int = 0
    output: int = 0

    @property
    def any(self) -> bool:
        """Whether anything was used."""
        return bool(self.input or self.output)


NOTHING = Tokens()


@dataclass(slots=True)
class RunningUsage:
    """Reduces the running usage of a stream's chunks to one total.

    The engine counts per choice while it streams (each chunk's numbers belong to that chunk's choice) and over all
    choices in the last chunk, which is final. `choices` answers belong to each prompt.
    """

    choices: int = 1
    final: Tokens | None = None
    uncounted: int = 0
    """Pieces of output without a count: at least a token each. They matter only where the engine never counts."""
    _outputs: dict[int, int] = field(default_factory=dict)
    _prompts: dict[int, int] = field(default_factory=dict)

    def see(self, index: int, *, input: int, output: int) -> None:
        """A chunk of choice `index` said so; counts never go back."""
        if output > self._outputs.get(index, -1):
            self._outputs[index] = output
        self._prompts[index // self.choices] = input

    def bump(self, index: int = 0) -> None:
        """A chunk carried output without a count: it holds at least one token."""
        self._outputs[index] = self._outputs.get(index, 0) + 1

    @property
    def said(self) -> bool:
        """Whether the engine has counted anything itself."""
        return self.final is not None or bool(self._prompts)

    def close(self, final: Tokens) -> None:
        """The engine's own total."""
        self.final = final

    @property
    def tokens(self) -> Tokens:
        """The total so far; a cut stream's cached count is unknown, so it is billed at the input rate."""
        if self.final is not None:
            return self.final
        if not self._outputs:
            return Tokens(input=sum(self._prompts.values()), output=self.uncounted)
        return Tokens(input=sum(self._prompts.values()), output=sum(self._outputs.values()))


class Subject(NamedTuple):
    """Whom and what a usage belongs to; written once, when a request first has tokens to log."""

    id: str
    key_id: str
    firm_id: str
    project_id: str
    model: str
    base_model: str
    lease_id: str | None
    dedicated: bool
    engine_start: str
    at_ms: int
    choices: int = 1  # the engine's own counters count the prompt once for each; the bill counts it once


class Opened(NamedTuple):
    """Log record: a stream runs and has used so much."""

    subject: Subject
    tokens: Tokens


class Counted(NamedTuple):
    """Log record: the running count of an opened stream."""

    id: str
    tokens: Tokens


class Closed(NamedTuple):
    """Log record: a request is over and this is what it is billed."""

    subject: Subject
    tokens: Tokens
    outcome: Outcome


Record = Opened | Counted | Closed


def follow(cut: dict[str, Opened], records: Iterable[Record]) -> int:
    """Read on in a log: keep `cut`, the streams that were opened and have not closed, at their last counts.

    Returns how many requests closed. A stream's lines stand in order: opened, counted, closed.
    """
    closed = 0
    for record in records:
        match record:
            case Closed(subject):
                cut.pop(subject.id, None)
                closed += 1
            case Opened(subject):
                cut[subject.id] = record
            case Counted(id, tokens):
                if id in cut:
                    cut[id] = Opened(cut[id].subject, tokens)
    return closed
