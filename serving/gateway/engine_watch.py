"""Looks at every engine's own metrics once a second: what waits there, also for other gateways, and how full it is.

It also sees to it that engines which tell of their cache are heard; of the others it reads how much a cache holds.
"""

import asyncio
import re
from collections.abc import Callable, Iterable

from serving.gateway.cache_events import hear
from serving.gateway.directory import Engine
from serving.gateway.http_client import EngineConnection
from serving.prefix_index import BLOCK_BYTES, BYTES_PER_TOKEN

EVERY_SECONDS = 1.0
SILENT_SECONDS_MAX = 5.0
"""An engine that takes longer to tell its metrics counts as broken."""
PAGE_BYTES_MAX = 4 << 20
_SAMPLE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{[^}\n]*\})? ([0-9.eE+-]+)$",
    re.MULTILINE,
)
_CACHE = re.compile(rb"^vllm:cache_config_info\{([^}\n]*)\}", re.MULTILINE)
_SIZE = re.compile(rb'\b(block_size|num_gpu_blocks)="(\d+)"')


class _Look:
    """Reads one page of metrics."""

    def __init__(self, engine: Engine, now_ms: Callable[[], int]) -> None:
        self._engine = engine
        self._now_ms = now_ms
        self._page: list[bytes] = []
        self._size = 0
        self._status = 0
        self._connection: EngineConnection | None = None
        self._silent = False
        self._timer = asyncio.get_running_loop().call_later(SILENT_SECONDS_MAX, self._give_up)

    def begun(self, connection: EngineConnection) -> bool:
        """It is asked on this connection."""
        self._connection = connection
        return True

    def _give_up(self) -> None:
        """It took the question and does not answer: whoever sends it a request would wait in vain."""
        self._silent = True
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.abort()

    def engine_head(self, status: int, content_type: bytes) -> None:
        self._status = status

    def engine_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= PAGE_BYTES_MAX:
            self._page.append(data)

    def engine_done(self) -> None:
        self._timer.cancel()
        self._engine.looking = False
        if self._status == 200 and self._size <= PAGE_BYTES_MAX:
            page = b"".join(self._page)
            running, waiting, filled = read(page)
            holds = cache_blocks(page)
            if holds is not None and not self._engine.hears:
                self._engine.prefixes.bound(self._engine.target.id, holds)
            target = self._engine.target
            target.others_running = max(0, running - target.running)
            target.others_waiting = min(waiting, max(0, running + waiting - target.running))
            target.filled = filled

    def engine_failed(self, why: str, *, began: bool, reused: bool) -> None:
        engine = self._engine
        self._timer.cancel()
        engine.looking = False
        engine.target.others_running = engine.target.others_waiting = 0
        if self._silent or (not reused and not began):
            engine.target.breaker.failed(self._now_ms())  # nobody listens there

    def fault(self, error: BaseException) -> None:
        self._timer.cancel()
        self._engine.looking = False


def read(page: bytes) -> tuple[int, int, float]:
    """(requests running, requests waiting, share of the KV cache in use) over all label sets of a metrics page."""
    sums = {b"num_requests_running": 0.0, b"num_requests_waiting": 0.0, b"kv_cache_usage_perc": 0.0}
    for name, value in _SAMPLE.findall(page):
        sums[name] += float(value)
    running, waiting, filled = sums.values()
    return round(running), round(waiting), min(1.0, max(0.0, filled))


def cache_blocks(page: bytes) -> int | None:
    """How many prefix blocks the engine's cache can hold; None when the page does not say."""
    said = _CACHE.search(page)
    sizes = {} if said is None else {name: int(number) for name, number in _SIZE.findall(said[1])}
    if len(sizes) < 2:
        return None
    return sizes[b"block_size"] * sizes[b"num_gpu_blocks"] * BYTES_PER_TOKEN // BLOCK_BYTES


def look(engine: Engine, now_ms: Callable[[], int]) -> None:
    """Ask one engine, unless the last question is still open."""
    if engine.looking:
        return
    engine.looking = True
    seen = _Look(engine, now_ms)
    engine.pool.send(
        b"GET %s/metrics HTTP/1.1\r\n%scontent-length: 0\r\n\r\n" % (engine.pool.prefix, engine.head),
        seen,
        seen.begun,
    )


async def watch(engines: Callable[[], Iterable[Engine]], now_ms: Callable[[], int]) -> None:
    """Look at all of them for ever. Where a model has one replica there is nothing to choose, but it is shown."""
    while True:
        for engine in list(engines()):
            look(engine, now_ms)
            hear(engine, asyncio.get_running_loop().time())
        await asyncio.sleep(EVERY_SECONDS)


def replica_gauges(engines: Iterable[Engine], now_ms: int) -> dict[str, dict[tuple[str, str], float]]:
    """Gauge → (model, replica) → now: this gateway's requests, those of others, the cache, the breaker."""
    rows: dict[str, dict[tuple[str, str], float]] = {
        "replica_running": {}, "replica_others_running": {}, "replica_others_waiting": {},
        "replica_kv_cache_usage": {}, "replica_healthy": {},
    }  # fmt: skip
    for engine in engines:
        target = engine.target
        values = (target.running, target.others_running, target.others_waiting, target.filled)
        for gauge, value in zip(rows.values(), (*values, target.breaker.allows(now_ms)), strict=True):
            gauge[engine.route.model, engine.route.id] = value
    return rows
