"""The second part of a request's life: the replica it goes to, now or when one has room."""

import time
from abc import abstractmethod
from collections.abc import Callable

from serving.gateway.cache_events import prompt_header
from serving.gateway.directory import Engine
from serving.gateway.http_client import EngineConnection, Sink
from serving.gateway.intake import Intake
from serving.metering import NOTHING, Outcome, Tokens
from serving.prefix_index import BLOCK_BYTES, BYTES_PER_TOKEN, prompt_blocks
from serving.routing import Ask, NoRoute


class Dispatch(Intake, Sink):
    """An admitted request on its way to a replica, whose answer it reads then."""

    __slots__ = ()

    @abstractmethod
    def _finish(self, tokens: Tokens, outcome: Outcome, then: Callable[[], None] | None = None) -> None:
        """No more is used: log it, settle, and `then` answer."""

    def ask(self) -> Ask:
        """What the router is asked."""
        assert self._destination is not None and self._asked is not None
        service = self._destination.service
        adapter_id, avoid = self._adapter_id(), self._avoided()
        tokens = self._asked.shape.body_bytes // BYTES_PER_TOKEN
        if len(service.targets) < 2:
            return Ask(adapter_id, tokens, avoid=avoid)
        if self._blocks is None:
            # An adapter's cache is its own, and so is each firm's.
            salt = f"{self.firm_id} {adapter_id}".encode()
            prompt = self._asked.prompt()
            self._blocks = prompt_blocks(salt, prompt)
            if self._blocks and self._asked.shape.prompts == 1:
                self._prompt_head = prompt_header(self.id, self._blocks, len(prompt))
        matched = service.prefixes.matched(self._blocks)
        held = {id: blocks * BLOCK_BYTES // BYTES_PER_TOKEN for id, blocks in matched.items()}
        self._matched = held
        return Ask(adapter_id, tokens, held, avoid=avoid)

    def need(self) -> Ask:
        """Which replicas can take it at all."""
        return Ask(self._adapter_id(), avoid=self._avoided())

    def _adapter_id(self) -> str | None:
        assert self._destination is not None
        adapter = self._destination.adapter
        return None if adapter is None else adapter.id

    def _avoided(self) -> frozenset[str]:
        """Replicas that failed it and have not started anew; none when there is no other."""
        if not self._avoid:
            return frozenset()
        assert self._destination is not None
        adapter = self._adapter_id()
        able = [
            (engine.route.id, engine.route.engine_start)
            for engine in self._destination.service.engines.values()
            if adapter is None or adapter in engine.target.adapters
        ]
        failed = frozenset(one[0] for one in able if one in self._avoid)
        return failed if len(failed) < len(able) else frozenset()

    def dispatch(self) -> None:
        """Send the request to a replica, or let it wait for one."""
        assert self._destination is not None
        service, adapter, _ = self._destination
        waiting = self._gateway.waiting
        found = waiting.only(service) if adapter is None and not self._avoid else None
        if found is None:
            found = waiting.route(service, self.ask())
        if isinstance(found, NoRoute):
            refusal = waiting.wait(self, service, found)
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
        if self._blocks is not None:
            destination.service.prefixes.sent(engine.target.id, self._blocks)
            engine.target.prefills.begin(self.id, max(0, tokens - self._matched.get(engine.target.id, 0)))
        prompt_head = self._prompt_head if engine.hears else b""
        engine.target.running += 1
        if not engine.target.breaker.calm:
            engine.target.breaker.begin(self.id, self._gateway.now_ms())
        self.replica, self.sent_at, self.first_at = engine.route.id, time.monotonic(), 0.0
        self.deadline = self.sent_at + self._gateway.settings.first_byte_seconds
        adapter = destination.adapter
        body = asked.for_engine(
            engine_model=engine.route.served_name if adapter is None else adapter.id,
            salt=grant.firm_id,
            output_tokens_max=min(self._gateway.settings.output_tokens_max, destination.service.model.context_tokens),
        )
        engine.pool.send(
            b"POST %s%s HTTP/1.1\r\n%s%scontent-length: %d\r\n\r\n%s"
            % (engine.pool.prefix, self._endpoint.path, engine.head, prompt_head, len(body), body),
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
