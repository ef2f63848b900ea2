"""What a request holds while it is open, and how all of it is given back: places, tokens, money, room, its replica."""

import asyncio
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from quotas.vocabulary import KeyGrant
from serving.admission import Hold, Reserve, cost, settle
from serving.gateway.answer_room import FREE_BYTES
from serving.gateway.answers import EventStream
from serving.gateway.directory import Destination, Engine
from serving.gateway.endpoints import Asked, Endpoint
from serving.gateway.gate import Subjects, Taken
from serving.gateway.http_client import EngineConnection
from serving.gateway.http_connection import Connection
from serving.gateway.http_messages import Request
from serving.gateway.metrics import NO_MODEL
from serving.gateway.openai_errors import Refusal
from serving.gateway.tracing import Ended, Traces
from serving.limits import give_back
from serving.metering import NOTHING, Subject, Tokens

if TYPE_CHECKING:
    from serving.gateway.gateway import Gateway

NO_RESERVE = Reserve(0, 0)


class OpenRequest(ABC):
    """A request that is not over: who sends it and what was taken for it, given back once by `refuse` or `_release`."""

    __slots__ = (
        "_answer", "_answer_bytes", "_answer_room", "_asked", "_avoid", "_blocks", "_connection",
        "_content_type", "_destination", "_endpoint", "_engine", "_fetching", "_gateway", "_grant", "_head",
        "_hold", "_logged", "_matched", "_over", "_parked", "_prompt_head", "_reply", "_request", "_resend",
        "_reserve", "_status", "_stream", "_subjects", "_taken", "_tries", "at_ms", "began", "charged_tokens",
        "deadline", "first_at", "gone", "heard", "id", "quiet_since", "replica", "sent_at", "slow",
        "waits_until_ms",
    )  # fmt: skip

    def __init__(self, gateway: "Gateway", request: Request, reply: Connection, endpoint: Endpoint) -> None:
        self.id = gateway.next_id()
        self.began = time.monotonic()
        self.at_ms = time.time_ns() // 1_000_000
        self.deadline = 0.0
        self.gone = False
        self.heard = self.slow = False  # the engine has said something since it was asked last; the client's buffer
        self.quiet_since = 0.0
        self.replica = ""
        self.sent_at = self.first_at = 0.0  # to the replica; the first bytes of its stream
        self._gateway = gateway
        self._request = request
        self._reply = reply
        self._endpoint = endpoint
        self._grant: KeyGrant | None = None
        self._asked: Asked | None = None
        self._destination: Destination | None = None
        self._subjects: Subjects = ()
        self._taken: Taken = ()
        self._reserve = NO_RESERVE
        self._hold: Hold | None = None
        self._engine: Engine | None = None
        self._fetching: asyncio.Task[dict[str, str] | Refusal] | None = None
        self._connection: EngineConnection | None = None
        self._blocks: list[int] | None = None
        self._prompt_head = b""
        self._matched: dict[str, int] = {}
        self._avoid: frozenset[tuple[str, str]] = frozenset()  # replicas and engine starts that failed it
        self.charged_tokens = 0  # to its firm, when its turn came
        self.waits_until_ms = 0  # in line for a replica, once it had to
        self._tries = 0
        self._resend = False
        self._head = b""
        self._status = 0
        self._content_type = b""
        self._answer: list[bytes] = []
        self._answer_bytes = 0
        self._answer_room = FREE_BYTES
        self._parked = False
        self._stream: EventStream | None = None
        self._logged = NOTHING
        self._over = False

    @abstractmethod
    def room_found(self, bytes_now: int) -> None:
        """Its answer may be read on, up to so many bytes."""

    @abstractmethod
    def fault(self, error: BaseException) -> None:
        """Something nobody foresaw happened to this request."""

    @property
    def firm_id(self) -> str:
        """Whose request it is."""
        assert self._grant is not None
        return self._grant.firm_id

    @property
    def reserved_tokens(self) -> int:
        """What it is expected to cost at most."""
        return self._reserve.tokens

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error; whatever was taken for the request is given back."""
        if self._over:
            return
        self._over = True
        self._leave_room()
        model = NO_MODEL if self._destination is None else self._destination.service.model.name
        self._gateway.metrics.refusals[model, refusal.code] += 1
        self._release(NOTHING)
        if self._gateway.traces is not None:
            self._trace(self._gateway.traces, NOTHING, error=refusal.code, status=refusal.status)
        anthropic = self._endpoint.anthropic
        self._reply.listener = None
        self._reply.respond(refusal.status, refusal.body(anthropic=anthropic), self._headers() + refusal.headers())

    def _trace(self, traces: Traces, tokens: Tokens, *, error: str, status: int) -> None:
        destination, parent = self._destination, self._request.headers.get(b"traceparent", b"")
        traces.record(
            Ended(
                self.id, self._endpoint.path, parent, "" if destination is None else destination.service.model.name,
                self.replica, self._stream is not None, self.began, self.sent_at, self.first_at, tokens, error, status,
            )
        )  # fmt: skip

    def _release(self, used: Tokens) -> tuple[int, int]:
        """Give back what was taken for the request; returns the micro-yuan and the tokens that its lease now owes."""
        charge = counted = 0
        service = None if self._destination is None else self._destination.service
        if service is not None and service.lines is not None and self.sent_at:
            self._gateway.waiting.served(service, self.firm_id, used.input + used.output - self.charged_tokens)
        self._leave_engine()
        if self._request.held:
            self._reply.server.memory.let_go(self._request)
        for meter, minute in self._taken:
            give_back(meter, minute=minute, reserved=self._reserve.tokens, used=used.input + used.output)
        self._taken = ()
        if self._hold is not None:
            assert self._destination is not None
            rate = self._destination.rate
            if rate is not None:
                charge = cost(rate, input=used.input, cached_input=used.cached_input, output=used.output)
            counted = settle(self._hold, charge, tokens=used.input + used.output)
            self._hold = None
        self._gateway.active.discard(self)
        return charge, counted

    def _leave_room(self) -> None:
        if self._parked or self._answer_room > FREE_BYTES:
            self._parked, self._answer_room = False, FREE_BYTES
            self._gateway.answers.leave(self)

    def _leave_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.target.running -= 1
            if engine.target.breaker.trial:
                engine.target.breaker.left(self.id)
            if self._blocks is not None:
                engine.target.prefills.drop(self.id)
            assert self._destination is not None
            if self._destination.service.lines is not None:
                self._gateway.waiting.freed(self._destination.service)

    def _subject(self) -> Subject:
        grant, destination, asked = self._grant, self._destination, self._asked
        assert grant is not None and destination is not None and asked is not None
        lease = None if self._hold is None else self._hold.lease
        engine = self._engine
        return Subject(
            self.id, grant.key_id, grant.firm_id, grant.project_id, asked.model, destination.service.model.name,
            None if lease is None else lease.id, destination.service.dedicated,
            "" if engine is None else engine.route.engine_start, self.at_ms,
            asked.shape.choices,
        )  # fmt: skip

    def _headers(self) -> bytes:
        if not self._head:
            gateway = self._gateway
            limits = gateway.gate.headers(self._subjects, now_ms=gateway.now_ms()) if self._subjects else b""
            notices = b"" if self._destination is None else self._destination.service.notices
            self._head = b"x-request-id: %b\r\n%b%b" % (self.id.encode(), limits, notices)
            if self._endpoint.anthropic:
                self._head = b"request-id: %b\r\n%b" % (self.id.encode(), self._head)
        return self._head
