"""One request's life: authenticate → limits → hold → route → stream → meter → settle.

Everything that can be decided from memory is decided in the callback that brought the request; only an unknown key
and an empty purse wait for the database.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kit.errors import HeliuError
from quotas.api import ip_allowed
from quotas.vocabulary import KeyGrant, Scope
from serving.admission import Hold, Reserve, TopUp, cost, reserve, settle
from serving.gateway.answers import EventStream, whole
from serving.gateway.directory import Destination, Engine
from serving.gateway.endpoints import Asked, Endpoint, Family, decode
from serving.gateway.engine_errors import EngineAnswer, judge
from serving.gateway.http_client import EngineConnection
from serving.gateway.http_server import Connection, Request
from serving.gateway.openai_errors import Refusal, refusal_for
from serving.limits import WINDOW_MS, Limited, Limits, Meter, give_back, remaining, take
from serving.metering import NOTHING, Closed, Outcome, Subject, Tokens
from serving.prefix_index import BLOCK_BYTES, prompt_blocks
from serving.routing import Ask, NoRoute

if TYPE_CHECKING:
    from serving.gateway.gateway import Gateway

ANSWER_BYTES_MAX = 64 << 20
BYTES_PER_TOKEN = 4
"""What a token of a prompt's JSON weighs, for routing; money and limits use a true bound."""
NO_LIMITS = Limits()
_LEFT = b"x-ratelimit-limit-%b: %%d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%ds\r\n"
_REQUESTS_LEFT = _LEFT % ((b"requests",) * 3)
_TOKENS_LEFT = _LEFT % ((b"tokens",) * 3)


class Exchange:
    """A request on its way. It listens to the client's connection and reads the engine's."""

    __slots__ = (
        "_answer",
        "_answer_bytes",
        "_asked",
        "_avoid",
        "_blocks",
        "_connection",
        "_content_type",
        "_destination",
        "_endpoint",
        "_engine",
        "_gateway",
        "_grant",
        "_head",
        "_hold",
        "_limits",
        "_logged",
        "_matched",
        "_meter",
        "_minute",
        "_over",
        "_prompt_tokens",
        "_reply",
        "_request",
        "_resend",
        "_reserve",
        "_status",
        "_stream",
        "_tries",
        "at_ms",
        "began",
        "deadline",
        "gone",
        "id",
    )  # fmt: skip

    def __init__(self, gateway: "Gateway", request: Request, reply: Connection, endpoint: Endpoint) -> None:
        self.id = gateway.next_id()
        self.began = time.monotonic()
        self.at_ms = time.time_ns() // 1_000_000
        self.deadline = 0.0
        self.gone = False
        self._gateway = gateway
        self._request = request
        self._reply = reply
        self._endpoint = endpoint
        self._grant: KeyGrant | None = None
        self._asked: Asked | None = None
        self._destination: Destination | None = None
        self._limits = NO_LIMITS
        self._meter: Meter | None = None
        self._minute = 0
        self._reserve = Reserve(0, 0)
        self._hold: Hold | None = None
        self._engine: Engine | None = None
        self._connection: EngineConnection | None = None
        self._prompt_tokens = 0
        self._blocks: list[int] | None = None
        self._matched: dict[str, int] = {}
        self._avoid: frozenset[str] = frozenset()
        self._tries = 0
        self._resend = False
        self._head = b""
        self._status = 0
        self._content_type = b""
        self._answer: list[bytes] = []
        self._answer_bytes = 0
        self._stream: EventStream | None = None
        self._logged = NOTHING
        self._over = False

    # --- admission ------------------------------------------------------------------------------------------------

    async def authenticate(self, bearer: bytes) -> None:
        """Admit with a key that has to be looked up."""
        try:
            grant = await self._gateway.keys.load(bearer)
        except HeliuError as error:
            self.refuse(refusal_for(error))
            return
        if grant is None:
            self.refuse(Refusal(401, "invalid_api_key", "this API key is unknown, expired or revoked"))
        elif not self.gone:
            self.admit(grant)

    def admit(self, grant: KeyGrant) -> None:
        """Check what the request may do and may cost, then send it on its way or refuse it."""
        self._grant = grant
        refusal = self._check(grant) or self._take_limits(grant)
        if refusal is not None:
            self.refuse(refusal)
            return
        held = self._gateway.purses.hold(grant.firm_id, self._reserve.micro_yuan)
        if isinstance(held, TopUp):
            self._gateway.spawn(self._top_up(grant.firm_id))
        else:
            self._hold = held
            self.dispatch()

    def _check(self, grant: KeyGrant) -> Refusal | None:
        if grant.ip_ranges is not None and not ip_allowed(grant.ip_ranges, self._reply.peer):
            return Refusal(403, "ip_not_allowed", "this key may not be used from this address")
        if Scope.INFERENCE not in grant.scopes:
            return Refusal(403, "missing_scope", f"this key lacks the scope `{Scope.INFERENCE}`")
        request = self._request
        asked = decode(self._endpoint, request.body, request.headers.get(b"content-type", b""))
        if isinstance(asked, Refusal):
            return asked
        request.body = b""
        destination = self._gateway.directory.find(grant.firm_id, asked.model, grant.models)
        if destination is None:
            return Refusal(404, "model_not_found", f"the model `{asked.model}` does not exist or is not yours", "model")
        model = destination.service.model
        if self._endpoint.capability and self._endpoint.capability not in model.capabilities:
            return Refusal(400, "unsupported_by_model", f"`{asked.model}` does not offer this endpoint", "model")
        if self._endpoint.family is not Family.FREE:
            if destination.rate is None:
                return Refusal(503, "no_tariff", f"no price is set for `{asked.model}`; tell the platform")
            self._reserve = reserve(asked.shape, destination.rate, model.context_tokens)
        self._asked, self._destination = asked, destination
        if destination.adapter is not None:
            self._gateway.adapter_wanted(destination.adapter.id)
        return None

    def _take_limits(self, grant: KeyGrant) -> Refusal | None:
        self._limits = self._gateway.limits_of(grant)
        meter = self._gateway.meter_of(grant.key_id)
        outcome = take(self._limits, meter, tokens=self._reserve.tokens, now_ms=self.at_ms)
        match outcome:
            case None:
                self._meter, self._minute = meter, self.at_ms // WINDOW_MS
                return None
            case Limited(reason, limit, retry_after_ms):
                return Refusal(
                    429,
                    str(reason),
                    f"this key's limit is {limit} {str(reason).replace('_', ' ')}; this request reserves "
                    f"{self._reserve.tokens} tokens",
                    retry_after_seconds=-(-retry_after_ms // 1_000),
                )
            case _:
                raise AssertionError("windows of one gateway have no shares")

    async def _top_up(self, firm_id: str) -> None:
        try:
            hold = await self._gateway.purses.hold_or_top_up(firm_id, self._reserve.micro_yuan)
        except HeliuError as error:
            self.refuse(refusal_for(error))
            return
        if hold is None:
            self.refuse(
                Refusal(
                    402,
                    "insufficient_quota",
                    f"this request may cost up to {self._reserve.micro_yuan} micro-yuan and the firm's balance does "
                    "not cover it; lower max_tokens or top up",
                )
            )
            return
        self._hold = hold
        if self.gone:
            self._release(NOTHING)
        else:
            self.dispatch()

    @property
    def firm_id(self) -> str:
        """Whose request it is."""
        assert self._grant is not None
        return self._grant.firm_id

    @property
    def reserved_tokens(self) -> int:
        """What it is expected to cost at most."""
        return self._reserve.tokens

    # --- routing --------------------------------------------------------------------------------------------------

    def ask(self) -> Ask:
        """What the router is asked."""
        assert self._destination is not None and self._asked is not None
        service, adapter, _ = self._destination
        adapter_id = None if adapter is None else adapter.id
        tokens = self._asked.shape.body_bytes // BYTES_PER_TOKEN
        if len(service.targets) < 2:
            return Ask(adapter_id, tokens, avoid=self._avoid)
        if self._blocks is None:
            # An adapter's cache is its own, and so is each firm's.
            salt = f"{self.firm_id} {adapter_id}".encode()
            self._blocks = prompt_blocks(salt, self._asked.prompt())
        matched = service.prefixes.matched(self._blocks)
        held = {id: blocks * BLOCK_BYTES // BYTES_PER_TOKEN for id, blocks in matched.items()}
        self._matched = held
        return Ask(adapter_id, tokens, held, avoid=self._avoid)

    def dispatch(self) -> None:
        """Send the request to a replica, or let it wait for one."""
        assert self._destination is not None
        service = self._destination.service
        found = self._gateway.route(service, self.ask())
        if isinstance(found, NoRoute):
            refusal = self._gateway.wait(self, service, found)
            if refusal is not None:
                self.refuse(refusal)
            return
        self.send(service.engines[found.id])

    def send(self, engine: Engine) -> None:
        """Send the request to this replica."""
        asked, destination, grant = self._asked, self._destination, self._grant
        assert asked is not None and destination is not None and grant is not None
        self._engine = engine
        self._tries += 1
        tokens = asked.shape.body_bytes // BYTES_PER_TOKEN
        self._prompt_tokens = max(0, tokens - self._matched.get(engine.target.id, 0))
        if self._blocks:
            destination.service.prefixes.sent(engine.target.id, self._blocks)
        engine.target.running += 1
        engine.target.pending_tokens += self._prompt_tokens
        engine.target.breaker.begin(self._gateway.now_ms())
        self.deadline = time.monotonic() + self._gateway.settings.first_byte_seconds
        adapter = destination.adapter
        body = asked.for_engine(
            engine_model=engine.route.served_name if adapter is None else adapter.id,
            salt=grant.firm_id,
            output_tokens_max=min(self._gateway.settings.output_tokens_max, destination.service.model.context_tokens),
        )
        engine.pool.send(
            b"POST %s%s HTTP/1.1\r\n%scontent-length: %d\r\n\r\n%s"
            % (engine.pool.prefix, self._endpoint.path, engine.head, len(body), body),
            self,
            self._sending,
            fresh=self._resend,
        )

    def _sending(self, connection: EngineConnection) -> bool:
        if self.gone:
            self._finish(NOTHING, Outcome.CLIENT_LEFT)
            return False
        self._connection = connection
        return True

    # --- what the engine says -------------------------------------------------------------------------------------

    def engine_head(self, status: int, content_type: bytes) -> None:
        assert self._engine is not None and self._asked is not None
        self._status, self._content_type = status, content_type
        self._engine.target.pending_tokens -= self._prompt_tokens
        self._prompt_tokens = 0
        self.deadline = 0.0
        if status == 200 and content_type.startswith(b"text/event-stream"):
            self._engine.target.breaker.succeeded()
            self._stream = EventStream(self._asked)
            self._gateway.streams.add(self)
            self._reply.start(200, self._headers(), b"text/event-stream; charset=utf-8")

    def engine_data(self, data: bytes) -> None:
        stream = self._stream
        if stream is not None:
            try:
                passed = stream.feed(data)
            except ValueError:
                self._cut_engine()
                return
            if not self.gone:
                self._reply.write(passed)
            return
        self._answer.append(data)
        self._answer_bytes += len(data)
        if self._answer_bytes > ANSWER_BYTES_MAX:
            self._cut_engine()

    def engine_done(self) -> None:
        self._connection = None
        stream = self._stream
        if stream is None:
            self._whole_answer()
        elif stream.done or stream.usage.final is not None:
            self._end_stream(Outcome.COMPLETED)
        else:
            self._end_stream(self._left() if self.gone else Outcome.ENGINE_FAILED)

    def engine_failed(self, why: str, *, began: bool, reused: bool) -> None:
        engine = self._engine
        assert engine is not None
        self._connection = None
        if self.gone:
            engine.target.breaker.abandoned()
        elif not (reused and not began):
            engine.target.breaker.failed(self._gateway.now_ms())
        if self._stream is not None:
            self._end_stream(self._left() if self.gone else Outcome.ENGINE_FAILED)
        elif self.gone:
            self._finish(NOTHING, self._left())
        elif self._answer or self._status:
            self.refuse(Refusal(502, "engine_failed", "the model's replica broke off its answer; try again"))
        else:
            self._try_again(avoid=not reused, fresh=reused)

    def _try_again(self, *, avoid: bool, fresh: bool = False) -> None:
        """Nothing of an answer was seen: the request goes elsewhere, or once more on a new connection."""
        engine = self._engine
        assert engine is not None
        self._gateway.metrics.retries[engine.route.id] += 1
        self._leave_engine()
        self._resend = fresh
        self._answer, self._answer_bytes, self._status = [], 0, 0
        if self._tries >= self._gateway.settings.tries_max:
            self.refuse(Refusal(503, "engine_unavailable", "the model's replicas do not answer", retry_after_seconds=2))
            return
        if avoid:
            self._avoid |= {engine.route.id}
        self.dispatch()

    def _whole_answer(self) -> None:
        asked, engine = self._asked, self._engine
        assert asked is not None and engine is not None
        body = self._answer[0] if len(self._answer) == 1 else b"".join(self._answer)
        if self._status == 200:
            engine.target.breaker.succeeded()
            passed, tokens = whole(body, asked)
            if tokens is None:
                self._finish(NOTHING, Outcome.COMPLETED)
                self._reply.respond(200, passed, self._headers(), self._content_type or b"application/json")
            else:
                self._finish(tokens, Outcome.COMPLETED, lambda: self._reply_whole(passed))
            return
        verdict = judge(self._status, body, asked.model, engine_name=self._engine_name())
        match verdict:
            case EngineAnswer.ELSEWHERE if not self.gone:
                engine.target.breaker.failed(self._gateway.now_ms())
                self._try_again(avoid=True)
            case EngineAnswer.ELSEWHERE:
                self._finish(NOTHING, self._left())
            case Refusal():
                engine.target.breaker.succeeded()
                self.refuse(verdict)

    def _engine_name(self) -> str:
        assert self._destination is not None and self._engine is not None
        adapter = self._destination.adapter
        return self._engine.route.served_name if adapter is None else adapter.id

    def _reply_whole(self, body: bytes) -> None:
        self._reply.respond(200, body, self._headers())

    def _end_stream(self, outcome: Outcome) -> None:
        stream = self._stream
        assert stream is not None
        self._gateway.streams.discard(self)
        tail = stream.tail
        if outcome is Outcome.ENGINE_FAILED:
            refusal = Refusal(502, "engine_failed", "the model's replica broke off its answer")
            tail = b"data: " + refusal.body() + b"\n\n"
        self._finish(stream.usage.tokens, outcome, lambda: self._reply.finish(tail))

    # --- the end --------------------------------------------------------------------------------------------------

    def count(self) -> None:
        """Log the running count of this stream if it grew."""
        assert self._stream is not None
        tokens = self._stream.usage.tokens
        if tokens != self._logged and tokens.any:
            self._logged = tokens
            self._gateway.shipper.count(self._subject(), tokens)

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error; whatever was taken for the request is given back."""
        if self._over:
            return
        self._over = True
        self._gateway.metrics.refusals[refusal.code] += 1
        self._release(NOTHING)
        anthropic = self._endpoint.family is Family.ANTHROPIC
        self._reply.listener = None
        self._reply.respond(refusal.status, refusal.body(anthropic=anthropic), self._headers() + refusal.headers())

    def _finish(self, tokens: Tokens, outcome: Outcome, then: Callable[[], None] | None = None) -> None:
        """The engine is done: log what was used, settle, and `then` answer once it is durable."""
        if self._over:
            return
        self._over = True
        gateway = self._gateway
        if tokens.any:
            closed = Closed(self._subject(), tokens, outcome)
            lease = None if self._hold is None else self._hold.lease
            charge = self._release(tokens)
            gateway.shipper.end(closed, then or _nothing, lease=lease, charge=charge)
        else:
            self._release(NOTHING)
            if then is not None:
                then()
        gateway.observe(self, self._destination, tokens, outcome)

    def _release(self, used: Tokens) -> int:
        """Give back what was taken for the request; returns the charge in micro-yuan that its lease now owes."""
        charge = 0
        self._leave_engine()
        if self._meter is not None:
            give_back(self._meter, minute=self._minute, reserved=self._reserve.tokens, used=used.input + used.output)
            self._meter = None
        if self._hold is not None:
            assert self._destination is not None
            rate = self._destination.rate
            if rate is not None:
                charge = cost(rate, input=used.input, cached_input=used.cached_input, output=used.output)
            settle(self._hold, charge)
            self._hold = None
        self._gateway.active.discard(self)
        return charge

    def _leave_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.target.running -= 1
            engine.target.pending_tokens -= self._prompt_tokens
            self._prompt_tokens = 0
            assert self._destination is not None
            self._gateway.freed(self._destination.service)

    def _subject(self) -> Subject:
        grant, destination, asked = self._grant, self._destination, self._asked
        assert grant is not None and destination is not None and asked is not None
        lease = None if self._hold is None else self._hold.lease
        engine = self._engine
        return Subject(
            self.id, grant.key_id, grant.firm_id, grant.project_id, asked.model, destination.service.model.name,
            None if lease is None else lease.id, destination.service.dedicated,
            "" if engine is None else engine.route.engine_start, self.at_ms,
        )  # fmt: skip

    def _headers(self) -> bytes:
        if not self._head:
            head = b"x-request-id: %s\r\n" % self.id.encode()
            if self._grant is not None and self._limits is not NO_LIMITS:
                head += self._limit_headers()
            self._head = head
        return self._head

    def _limit_headers(self) -> bytes:
        limits, grant = self._limits, self._grant
        assert grant is not None
        meter = self._gateway.meter_of(grant.key_id)
        requests, tokens, ends_ms = remaining(limits, meter, now_ms=self._gateway.now_ms())
        seconds = -(-ends_ms // 1_000)
        head = b""
        if requests is not None:
            head = _REQUESTS_LEFT % (limits.requests_per_minute, requests, seconds)
        if tokens is not None:
            head += _TOKENS_LEFT % (limits.tokens_per_minute, tokens, seconds)
        return head

    # --- the client -----------------------------------------------------------------------------------------------

    def client_gone(self) -> None:
        if self._over:
            return
        self.gone = True
        if self._connection is not None:
            self._connection.give_up()  # the engine stops; what it sent until then is still counted
        elif self._engine is None and self._gateway.stop_waiting(self):
            self._over = True
            self._release(NOTHING)

    def client_slow(self, slow: bool) -> None:
        if self._connection is not None:
            self._connection.slow(slow)

    def overdue(self) -> None:
        """The engine has not begun to answer in time."""
        self.deadline = 0.0
        self._cut_engine()

    def _cut_engine(self) -> None:
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.abort()

    def _left(self) -> Outcome:
        return Outcome.DRAINED if self._gateway.cutting else Outcome.CLIENT_LEFT


def _nothing() -> None:
    return None
