"""The first half of a request's life: authenticate → limits → hold; and what was taken for it is given back.

Everything that can be decided from memory is decided in the callback that brought the request; only an unknown key
and an empty purse wait for the database.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from kit.errors import HeliuError
from quotas.vocabulary import KeyGrant, Scope
from serving.admission import Hold, Reserve, TopUp, cost, reserve, settle
from serving.gateway.answer_room import FREE_BYTES
from serving.gateway.answers import EventStream
from serving.gateway.directory import Destination, Engine
from serving.gateway.endpoints import Asked, Endpoint, Family, decode
from serving.gateway.gate import Denied, Subjects, Taken
from serving.gateway.http_client import EngineConnection
from serving.gateway.http_server import Connection, Request
from serving.gateway.metrics import NO_MODEL
from serving.gateway.openai_errors import ADDRESS_NOT_ALLOWED, ENCODED, HOLDS_TOO_MUCH, Refusal, refusal_for
from serving.gateway.tracing import Ended, Traces
from serving.limits import give_back
from serving.metering import NOTHING, Subject, Tokens

if TYPE_CHECKING:
    from serving.gateway.gateway import Gateway

NO_RESERVE = Reserve(0, 0)
_NO_LIMITS = Refusal(
    503, "limits_unavailable", "a rate limit is shared with other gateways and cannot be asked for now",
    retry_after_seconds=2,
)  # fmt: skip


class Intake(ABC):
    """A request, who sends it, and what is reserved for it. `dispatch` says what happens once it is admitted."""

    __slots__ = (
        "_answer",
        "_answer_bytes",
        "_answer_room",
        "_asked",
        "_avoid",
        "_blocks",
        "_connection",
        "_content_type",
        "_destination",
        "_endpoint",
        "_engine",
        "_fetching",
        "_gateway",
        "_grant",
        "_head",
        "_hold",
        "_logged",
        "_matched",
        "_over",
        "_parked",
        "_prompt_head",
        "_reply",
        "_request",
        "_resend",
        "_reserve",
        "_status",
        "_stream",
        "_subjects",
        "_taken",
        "_tries",
        "at_ms",
        "began",
        "charged_tokens",
        "deadline",
        "first_at",
        "gone",
        "heard",
        "id",
        "quiet_since",
        "replica",
        "sent_at",
        "slow",
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
    def dispatch(self) -> None:
        """Go on with an admitted request."""

    @abstractmethod
    def room_found(self, bytes_now: int) -> None:
        """Its answer may be read on, up to so many bytes."""

    @abstractmethod
    def fault(self, error: BaseException) -> None:
        """Something nobody foresaw happened to this request."""

    async def authenticate(self, bearer: bytes) -> None:
        """Admit with a key that has to be looked up."""
        try:
            grant = await self._gateway.keys.load(bearer)
        except HeliuError as error:
            self.refuse(refusal_for(error))
            return
        if grant is None:
            self.refuse(Refusal(401, "invalid_api_key", "this API key is unknown, expired or revoked"))
        elif self.gone:
            self._release(NOTHING)
        else:
            self.admit(grant)

    def admit(self, grant: KeyGrant) -> None:
        """Check what the request may do and may cost, then send it on its way or refuse it."""
        self._grant = grant
        refusal = self._check(grant)
        if refusal is not None:
            self.refuse(refusal)
            return
        assert self._destination is not None
        gate = self._gateway.gate
        self._subjects = gate.subjects(grant, self._destination.service.model.name)
        taken = gate.take(self._subjects, tokens=self._reserve.tokens, now_ms=self.at_ms)
        if taken is None:
            self._gateway.spawn(self._wait_for_limits(grant), self.fault)
        elif isinstance(taken, Denied):
            self._refuse_limited(taken)
        else:
            self._taken = taken
            self._hold_money(grant)

    async def _wait_for_limits(self, grant: KeyGrant) -> None:
        """Other gateways count at the same limits: have more of them leased to this one."""
        try:
            taken = await self._gateway.gate.take_or_lease(self._subjects, tokens=self._reserve.tokens)
        except (HeliuError, OSError):
            self.refuse(_NO_LIMITS)
            return
        if isinstance(taken, Denied):
            self._refuse_limited(taken)
            return
        self._taken = taken
        if self.gone:
            self._release(NOTHING)
        else:
            self._hold_money(grant)

    def _hold_money(self, grant: KeyGrant) -> None:
        payer, tokens = grant.payer, self._reserve.tokens if grant.counts_tokens else 0
        held = self._gateway.purses.hold(payer, self._reserve.micro_yuan, tokens, now_ms=self.at_ms)
        if isinstance(held, TopUp):
            self._gateway.spawn(self._top_up(payer, tokens), self.fault)
        else:
            self._hold = held
            self._go_on()

    def _go_on(self) -> None:
        """Everything is reserved: fetch what the request names by address, then dispatch it."""
        assert self._asked is not None
        if self._asked.remote_images:
            self._gateway.spawn(self._fetch_images(self._asked), self.fault)
        else:
            self.dispatch()

    async def _fetch_images(self, asked: Asked) -> None:
        work = self._gateway.images.fetch(self.firm_id, asked.remote_images)
        fetching = self._fetching = asyncio.get_running_loop().create_task(work)
        try:
            fetched = await fetching
        except asyncio.CancelledError:
            if not self.gone:
                raise
            self._over = True
            self._release(NOTHING)
            return
        finally:
            self._fetching = None
        if isinstance(fetched, Refusal):
            self.refuse(fetched)
        elif self.gone:
            self._release(NOTHING)
        elif not self._reply.server.memory.hold(self._request, sum(map(len, fetched.values()))):
            self.refuse(HOLDS_TOO_MUCH)
        else:
            asked.bring_in(fetched)
            self.dispatch()

    def _check(self, grant: KeyGrant) -> Refusal | None:
        request = self._request
        if grant.ip_ranges is not None and not self._gateway.allows_address(grant, request, self._reply):
            return ADDRESS_NOT_ALLOWED
        if Scope.INFERENCE not in grant.scopes:
            return Refusal(403, "missing_scope", f"this key lacks the scope `{Scope.INFERENCE}`")
        asked = decode(self._endpoint, request.body, request.headers.get(b"content-type", b""))
        if isinstance(asked, Refusal):
            encoded = request.headers.get(b"content-encoding", b"identity").lower() != b"identity"
            return ENCODED if encoded and asked.code == "invalid_json" else asked
        request.body = b""
        destination = self._gateway.directory.find(grant.firm_id, asked.model, grant.models)
        if destination is None:
            return Refusal(404, "model_not_found", f"the model `{asked.model}` does not exist or is not yours", "model")
        model, retires_ms = destination.service.model, destination.service.retires_ms
        if retires_ms and self.at_ms >= retires_ms:
            return Refusal(404, "model_retired", f"`{asked.model}` was retired; GET /v1/models lists what is", "model")
        cannot = asked.lacking(model.capabilities)
        if cannot is not None:
            return Refusal(400, "unsupported_by_model", f"`{asked.model}` {cannot}", "model")
        if self._endpoint.family is not Family.FREE:
            if destination.rate is None:
                return Refusal(503, "no_tariff", f"no price is set for `{asked.model}`; tell the platform")
            self._reserve = reserve(asked.shape, destination.rate, model.context_tokens)
        self._asked, self._destination = asked, destination
        if destination.adapter is not None:
            self._gateway.adapter_wanted(destination.adapter.id)
        return None

    def _refuse_limited(self, denied: Denied) -> None:
        limited, whose = denied
        reason = str(limited.reason)
        self.refuse(
            Refusal(
                429,
                reason,
                f"{whose} is {limited.limit} {reason.replace('_', ' ')}; this request reserves "
                f"{self._reserve.tokens} tokens",
                retry_after_seconds=-(-limited.retry_after_ms // 1_000),
            )
        )

    async def _top_up(self, payer: str, tokens: int) -> None:
        purses = self._gateway.purses
        try:
            hold = await purses.hold_or_top_up(payer, self._reserve.micro_yuan, tokens)
            rule = await purses.rule_against(payer, hold) if isinstance(hold, TopUp) else None
        except HeliuError as error:
            self.refuse(refusal_for(error))
            return
        if rule is not None:
            self.refuse(refusal_for(rule))
            return
        if isinstance(hold, TopUp):
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
            self._go_on()

    @property
    def firm_id(self) -> str:
        """Whose request it is."""
        assert self._grant is not None
        return self._grant.firm_id

    @property
    def reserved_tokens(self) -> int:
        """What it is expected to cost at most."""
        return self._reserve.tokens

    # --- the end --------------------------------------------------------------------------------------------------

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
        anthropic = self._endpoint.family is Family.ANTHROPIC
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
        return self._head
