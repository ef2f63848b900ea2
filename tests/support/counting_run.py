"""Requests of every kind, cut off anywhere, through gateways that are killed: then billed is held against counted."""

import asyncio
import contextlib
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import text

from kit.db import Database
from quotas import api as quotas
from serving.gateway.bench_target import Furnished
from tests.support.gateway_process import GatewayProcess, gateway_process
from tests.support.gateways import chat, request
from tests.support.mock_engines import MockEngine
from tests.support.until import until, until_async

MODEL = "city-model"
CLIENTS = 16
PATHS: dict[str, Callable[[int], dict[str, Any]]] = {
    "/v1/chat/completions": lambda tokens: chat("story " * (tokens % 7), model=MODEL, max_tokens=tokens),
    "/v1/completions": lambda tokens: {"model": MODEL, "prompt": "a", "max_tokens": tokens, "n": 2},
    "/v1/responses": lambda tokens: {"model": MODEL, "input": "a", "max_output_tokens": tokens},
    "/v1/messages": lambda tokens: chat("b", model=MODEL, max_tokens=tokens),
}


@dataclass
class Counted:
    """What a part of the run used: as the engine counted, as it was billed, and how many answers came whole."""

    requests: int = 0
    whole: int = 0
    prompt: int = 0
    generation: int = 0
    billed_prompt: int = 0
    billed_generation: int = 0
    killed: bool = False

    @property
    def loss(self) -> int:
        """Tokens that nobody pays for."""
        return self.prompt + self.generation - self.billed_prompt - self.billed_generation


class CountingRun:
    """One city, one engine, gateways in one folder one after another."""

    def __init__(self, db: Database, url: str, made: Furnished, engine: MockEngine, folder: Path, *, seed: int) -> None:
        self._db, self._url, self._made, self._engine, self._folder = db, url, made, engine, folder
        self._random = random.Random(seed)

    async def part(self, count: int, *, kill: bool) -> Counted:
        """`count` requests; with `kill`, the gateway dies among them and another replays its log."""
        seen = Counted(requests=count, killed=kill)
        before, billed = self._engine_counts(), await self._billed()
        left = [None] * count
        with gateway_process(self._url, self._folder) as gateway:
            await asyncio.to_thread(until, partial(_ready, gateway.port), seconds=30, what="the gateway to be ready")
            clients = asyncio.gather(*(self._client(gateway, left, seen) for _ in range(CLIENTS)))
            if kill:
                while len(left) > count // 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
                await asyncio.to_thread(gateway.kill)
                left.clear()
            await clients
            if not kill:
                await self._end(gateway)
        if kill:
            with gateway_process(self._url, self._folder) as again:
                await until_async(self._shipped, seconds=60, what="the replay to be shipped")
                await self._end(again)
        after, now = self._engine_counts(), await self._billed()
        seen.prompt, seen.generation = after[0] - before[0], after[1] - before[1]
        seen.billed_prompt, seen.billed_generation = now[0] - billed[0], now[1] - billed[1]
        return seen

    async def _shipped(self) -> bool:
        """Whether what the killed gateway left is in the ledger: what it had leased is returned only then."""
        async with self._db.transaction() as tx:
            return not [hold for hold in await quotas.open_holds(tx) if hold.firm_id == self._made.firm_id]

    async def _end(self, gateway: GatewayProcess) -> None:
        code = await asyncio.to_thread(gateway.terminate, seconds=60)
        assert code == 0, f"the gateway ended with {code}: {gateway.log.read_text()[-3000:]}"

    async def verify(self) -> None:
        """Every hold is closed, the ledger is sound. Raises AssertionError."""
        async with self._db.transaction() as tx:
            findings = await quotas.check_ledger(tx)
            holds = [hold for hold in await quotas.open_holds(tx) if hold.firm_id == self._made.firm_id]
        assert not findings, findings
        assert not holds, holds

    async def _client(self, gateway: GatewayProcess, left: list[None], seen: Counted) -> None:
        while left:
            left.pop()
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._request(gateway.port, seen)

    async def _request(self, port: int, seen: Counted) -> None:
        pick = self._random
        path, tokens = pick.choice(list(PATHS)), pick.randrange(1, 12)
        stream = pick.random() < 0.6
        data = request(
            PATHS[path](tokens) | {"stream": stream}, path=path, key=self._made.key, extra="Connection: close\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            cut = pick.random()
            if cut < 0.1:  # in the middle of asking
                writer.write(data[: pick.randrange(len(data))])
                await writer.drain()
                return
            writer.write(data)
            if cut < 0.5:  # after any byte of the answer, or before the first
                await reader.readexactly(pick.randrange(400 * tokens if stream else 600))
                return
            end = b"0\r\n\r\n" if stream else b"}"
            answer = b""
            while not answer.endswith(end):
                piece = await asyncio.wait_for(reader.read(65_536), 30)
                if not piece:
                    return
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
            seen.whole += 1
        finally:
            writer.transport.abort()

    def _engine_counts(self) -> tuple[int, int]:
        deadline = time.monotonic() + 30
        while self._engine.counted("num_requests_running"):
            assert time.monotonic() < deadline, "the engine goes on although nobody asks"
            time.sleep(0.02)
        return self._engine.counted("prompt_tokens_total"), self._engine.counted("generation_tokens_total")

    async def _billed(self) -> tuple[int, int]:
        async with self._db.transaction() as tx:
            row = (
                await tx.execute(
                    text("SELECT coalesce(sum(input), 0), coalesce(sum(output), 0) FROM quotas.token_usage")
                )
            ).one()
        return int(row[0]), int(row[1])


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except urllib.error.HTTPError:
        return False
