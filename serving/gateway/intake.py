"""The first part of a request's life: authenticate → limits → hold.

Everything that can be decided from memory is decided in the callback that brought the request; only an unknown key
and an empty purse wait for the database.
"""

import asyncio
from abc import abstractmethod

from kit.errors import HeliuError
from quotas.vocabulary import KeyGrant, Scope
from serving.admission import TopUp, reserve
from serving.gateway.endpoints import Asked, Family, decode
from serving.gateway.gate import Denied
from serving.gateway.open_request import OpenRequest
from serving.gateway.openai_errors import (
    ADDRESS_NOT_ALLOWED,
    ENCODED,
    HOLDS_TOO_MUCH,
    UNKNOWN_KEY,
    Refusal,
    refusal_for,
)
from serving.metering import NOTHING

_NO_LIMITS = Refusal(
    503, "limits_unavailable", "a rate limit is shared with other gateways and cannot be asked for now",
    retry_after_seconds=2,
)  # fmt: skip


class Intake(OpenRequest):
    """A request on its way in. `dispatch` says what happens once it is admitted."""

    __slots__ = ()

    @abstractmethod
    def dispatch(self) -> None:
        """Go on with an admitted request."""

    async def authenticate(self, bearer: bytes) -> None:
        """Admit with a key that has to be looked up."""
        try:
            grant = await self._gateway.keys.load(bearer)
        except HeliuError as error:
            self.refuse(refusal_for(error))
            return
        if grant is None:
            self.refuse(UNKNOWN_KEY)
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
            self.refuse(taken.refusal(self._reserve.tokens))
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
            self.refuse(taken.refusal(self._reserve.tokens))
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
