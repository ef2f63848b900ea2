"""The last part of a request's life: stream → meter → settle, after `intake.py` and `dispatch.py`."""

import logging
import time
from collections.abc import Callable
from functools import partial

import msgspec

from serving.gateway.answer_room import FREE_BYTES
from serving.gateway.answers import EventStream, error_event, whole
from serving.gateway.directory import Engine
from serving.gateway.dispatch import Dispatch
from serving.gateway.endpoints import Family
from serving.gateway.engine_errors import EngineAnswer, judge
from serving.gateway.faults import where
from serving.gateway.openai_errors import HOLDS_TOO_MUCH, INTERNAL, NO_ANSWER, UNAVAILABLE, Refusal
from serving.metering import NOTHING, Closed, Outcome, Tokens

log = logging.getLogger(__name__)

ANSWER_BYTES_MAX = 64 << 20


class Exchange(Dispatch):
    """A request on its way. It listens to the client's connection and reads the engine's."""

    __slots__ = ()

    # --- what the engine says -------------------------------------------------------------------------------------

    def engine_head(self, status: int, content_type: bytes) -> None:
        assert self._engine is not None and self._asked is not None
        self._status, self._content_type, self.heard = status, content_type, True
        self.deadline = 0.0
        if status == 200 and self._request.held:
            self._let_go_of_body()
        if status == 200 and content_type.startswith(b"text/event-stream"):
            self._engine.target.breaker.succeeded()
            self._stream = EventStream(self._asked)
            self._gateway.streams.add(self)
            self._reply.start(200, self._headers(), b"text/event-stream; charset=utf-8")

    def engine_data(self, data: bytes) -> None:
        stream = self._stream
        self.heard = True
        if stream is not None:
            if not self.first_at:
                self.first_at = time.monotonic()
                if self._engine is not None:
                    self._engine.target.prefills.done(self.id)
            try:
                passed = stream.feed(data)
            except ValueError:
                self._cut_engine()
                return
            if not self.gone:
                self._reply.write(passed)
            elif self._connection is not None and self._counts_as_it_goes():
                self._connection.give_up()  # its client left before the first count came
            return
        self._answer.append(data)
        self._answer_bytes += len(data)
        if self._answer_bytes > self._answer_room:
            self._find_room()

    def _let_go_of_body(self) -> None:
        """It will not be sent again."""
        assert self._asked is not None
        self._asked.fields = {}
        self._reply.server.memory.let_go(self._request)

    def _find_room(self) -> None:
        """The answer grows beyond what it may have: more of it is read once there is room."""
        if self._answer_bytes > ANSWER_BYTES_MAX:
            self._cut_engine()
            return
        room = self._gateway.answers.extend(self, self._answer_bytes)
        if room is not None:
            self._answer_room = room
            return
        self._parked = True
        self.deadline = time.monotonic() + self._gateway.settings.stall_seconds
        if self._connection is not None:
            self._connection.slow(True)

    def room_found(self, bytes_now: int) -> None:
        self._answer_room, self._parked, self.deadline = bytes_now, False, 0.0
        if self.gone:
            self.deadline = time.monotonic() + self._gateway.settings.finish_seconds
        if self._connection is not None:
            self._connection.slow(self.slow)

    def engine_done(self) -> None:
        self._connection = None
        stream = self._stream
        if stream is None:
            self._whole_answer()
        elif (stream.done or stream.usage.final is not None) and not stream.failed:
            self._end_stream(self._left() if self.gone else Outcome.COMPLETED)
        else:
            self._end_stream(self._left() if self.gone else Outcome.ENGINE_FAILED)

    def engine_failed(self, why: str, *, began: bool, reused: bool) -> None:
        engine = self._engine
        assert engine is not None
        self._connection = None
        if not (self.gone or self._parked or (reused and not began)):
            self._blame(engine)
        if self._stream is not None:
            self._end_stream(self._left() if self.gone else Outcome.ENGINE_FAILED)
        elif self.gone:
            self._finish(NOTHING, self._left())
        elif self._parked:
            self.refuse(HOLDS_TOO_MUCH)
        elif self._answer or self._status:
            self.refuse(Refusal(502, "engine_failed", "the model's replica broke off its answer; try again"))
        else:
            self._try_again(avoid=not reused, fresh=reused)

    def _blame(self, engine: Engine) -> None:
        """Its replica failed it. One request says that once of a replica: it may be the request that is to blame."""
        if (engine.route.id, engine.route.engine_start) not in self._avoid:
            engine.target.breaker.failed(self._gateway.now_ms())

    def _try_again(self, *, avoid: bool, fresh: bool = False) -> None:
        """Nothing of an answer was seen: the request goes elsewhere, or once more on a new connection."""
        engine = self._engine
        assert engine is not None
        self._gateway.metrics.retries[engine.route.id] += 1
        self._leave_engine()
        self._leave_room()
        self._resend = fresh
        self._answer, self._answer_bytes, self._status = [], 0, 0
        if self._tries >= self._gateway.settings.tries_max:
            self.refuse(UNAVAILABLE)
            return
        if avoid:
            self._avoid |= {(engine.route.id, engine.route.engine_start)}
        self.dispatch()

    def _whole_answer(self) -> None:
        asked, engine = self._asked, self._engine
        assert asked is not None and engine is not None
        body = self._answer[0] if len(self._answer) == 1 else b"".join(self._answer)
        self._answer = []
        if self._parked or self._answer_room > FREE_BYTES:
            self._answer_room = self._gateway.answers.whole(self, self._answer_bytes)
            self._parked, self.deadline = False, 0.0
        if self._status == 200:
            engine.target.breaker.succeeded()
            engine.target.prefills.done(self.id)
            try:
                passed, tokens = whole(body, asked)
            except msgspec.MsgspecError:
                self._uncounted(engine)
                self.refuse(NO_ANSWER)
                return
            outcome = self._left() if self.gone else Outcome.COMPLETED
            if tokens is None and asked.endpoint.family is not Family.FREE:
                self._uncounted(engine)
            self._finish(tokens or NOTHING, outcome, partial(self._reply_whole, passed))
            return
        verdict = judge(self._status, body, asked.model, engine_name=self._engine_name())
        match verdict:
            case EngineAnswer() if self.gone:
                self._finish(NOTHING, self._left())
            case EngineAnswer.ELSEWHERE:
                self._blame(engine)
                self._try_again(avoid=True)
            case EngineAnswer.BUSY:
                engine.target.breaker.busy(self._gateway.now_ms())
                self._tries -= 1  # it has not failed: the request goes where there is room, or waits for it
                self._try_again(avoid=False)
            case Refusal():
                engine.target.breaker.succeeded()
                self.refuse(verdict)

    def _engine_name(self) -> str:
        assert self._destination is not None and self._engine is not None
        adapter = self._destination.adapter
        return self._engine.route.served_name if adapter is None else adapter.id

    def _reply_whole(self, body: bytes) -> None:
        self._reply.respond(200, body, self._headers(), self._content_type or b"application/json")
        if self._answer_room > FREE_BYTES:
            self._reply.once_sent(self._leave_room)

    def _end_stream(self, outcome: Outcome) -> None:
        stream = self._stream
        assert stream is not None
        self._gateway.streams.discard(self)
        tail = stream.tail
        if stream.done and not stream.usage.said and self._engine is not None:
            self._uncounted(self._engine)
        if outcome is Outcome.ENGINE_FAILED and not stream.failed:  # the engine did not say so itself
            tail = error_event(Refusal(502, "engine_failed", "the model's replica broke off its answer"), stream.family)
        self._finish(stream.usage.tokens, outcome, lambda: self._reply.finish(tail))

    # --- the end --------------------------------------------------------------------------------------------------

    def count(self) -> None:
        """Log the running count of this stream if it grew."""
        assert self._stream is not None
        tokens = self._stream.usage.tokens
        if tokens != self._logged and tokens.any:
            self._logged = tokens
            self._gateway.shipper.count(self._subject(), tokens)

    def _finish(self, tokens: Tokens, outcome: Outcome, then: Callable[[], None] | None = None) -> None:
        """The engine is done: log what was used, settle, and `then` answer once it is durable."""
        if self._over:
            return
        self._over = True
        gateway = self._gateway
        if tokens.any:
            closed = Closed(self._subject(), tokens, outcome)
            lease = None if self._hold is None else self._hold.lease
            charge, counted = self._release(tokens)
            gateway.shipper.end(closed, then or _nothing, lease=lease, charge=charge, tokens=counted)
        else:
            self._release(NOTHING)
            if then is not None:
                then()
        if then is None:
            self._leave_room()
        gateway.observe(self, self._destination, tokens, outcome)
        if gateway.traces is not None:
            error = "" if outcome is Outcome.COMPLETED else outcome.value
            self._trace(gateway.traces, tokens, error=error, status=self._status or 499)

    # --- the client -----------------------------------------------------------------------------------------------

    def client_gone(self) -> None:
        if self._over:
            return
        self.gone = True
        connection = self._connection
        if connection is not None and (self._counts_as_it_goes() or self._gateway.cutting):
            connection.give_up()  # the engine stops; what it sent until then is still counted
        elif connection is not None:
            connection.slow(self._parked)
            bound = time.monotonic() + self._gateway.settings.finish_seconds
            self.deadline = min(self.deadline or bound, bound)
        elif self._fetching is not None:
            self._fetching.cancel()
        elif self._engine is None and self._gateway.waiting.leave(self):
            self._over = True
            self._release(NOTHING)

    def _counts_as_it_goes(self) -> bool:
        """Whether the answer has told what it has used so far; of others nothing is known if they are cut."""
        stream = self._stream
        return stream is not None and stream.usage.said and self._endpoint.family is Family.OPENAI

    def stalled(self, now: float, seconds: float) -> bool:
        """Whether the engine began an answer and has said nothing for so long, though its client was listening."""
        if self.heard or self.slow or self._parked or not self._status or self._engine is None or not self.quiet_since:
            self.heard, self.quiet_since = False, now
        return now - self.quiet_since > seconds

    def client_slow(self, slow: bool) -> None:
        self.slow = slow
        if self._connection is not None:
            self._connection.slow(slow or self._parked)

    def overdue(self) -> None:
        """The engine has not begun to answer in time, or not finished an answer that nobody waits for any more."""
        self.deadline = 0.0
        self._cut_engine()

    def _cut_engine(self) -> None:
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.abort()

    def _uncounted(self, engine: Engine) -> None:
        """An answer came without the usage that was asked for: nobody pays for what cannot be proven."""
        self._gateway.metrics.uncounted[engine.route.id] += 1
        log.error("an engine did not say what an answer used", extra={"replica": engine.route.id, "request": self.id})

    def fault(self, error: BaseException) -> None:
        """What nobody foresaw: a 500, or a cut where the answer had begun; nothing stays taken for the request."""
        log.error("a request failed in a way nobody foresaw", extra={"request": self.id, "fault": where(error)})
        reply, stream = self._reply, self._stream
        connection, self._connection = self._connection, None
        if connection is not None and connection.sink is self and connection.transport is not None:
            connection.sink = None
            connection.transport.abort()
        if self._over or stream is not None:
            self._gateway.streams.discard(self)
            self._finish(NOTHING if stream is None else stream.usage.tokens, Outcome.ENGINE_FAILED)
            if reply.current is self._request:
                reply.abort()
        else:
            self.refuse(INTERNAL)

    def _left(self) -> Outcome:
        return Outcome.DRAINED if self._gateway.cutting else Outcome.CLIENT_LEFT


def _nothing() -> None:
    return None
