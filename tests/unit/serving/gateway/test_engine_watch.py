"""What engines say of themselves reaches the router and the metrics page."""

import asyncio
import re
from pathlib import Path

from serving.gateway.engine_watch import read
from serving.gateway.server import RunningGateway
from serving.routing import FAILURES_TO_OPEN
from tests.support.gateways import FakePlane, RawClient, chat, post, request, running
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async


async def page(gateway: RunningGateway) -> str:
    client = await RawClient.to(gateway.metrics_port)
    client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        return (await client.answer()).body.decode()
    finally:
        await client.close()


def value(page: str, name: str, **labels: str) -> float:
    text = ",".join(f'{key}="{label}"' for key, label in labels.items())
    found = re.search(rf"^heliu_gateway_{name}{{{text}}} (\S+)$", page, re.MULTILINE)
    assert found, f"{name}{{{text}}} is not on the page:\n{page}"
    return float(found[1])


def test_a_page_is_summed_over_its_label_sets() -> None:
    text = (
        b'vllm:num_requests_running{engine="0",model_name="m"} 3.0\nvllm:num_requests_running{engine="1"} 1.0\n'
        b'vllm:num_requests_waiting{engine="0"} 2.0\nvllm:num_requests_waiting_by_reason{reason="capacity"} 9.0\n'
        b"vllm:kv_cache_usage_perc 0.25\n"
    )
    assert read(text) == (4, 2, 0.25)


async def test_requests_of_others_at_a_replica_send_ours_to_another(tmp_path: Path) -> None:
    arguments = ("--key", "engine-secret", "--interval-ms", "20", "--keep-bodies")
    with mock_engine(*arguments) as busy, mock_engine(*arguments) as idle:
        plane = FakePlane(engines=[busy.url, idle.url])
        foreign = await RawClient.to(int(busy.url.rsplit(":", 1)[1]))
        foreign.send(request(chat("of another gateway", max_tokens=500, stream=True), key="engine-secret"))
        async with running(plane, tmp_path) as gateway:

            async def seen() -> bool:
                return value(await page(gateway), "replica_others_running", model="mock-model", replica="rep_0") == 1

            await until_async(seen, seconds=10, what="the other gateway's request to be seen")
            for _ in range(3):
                assert (await post(gateway.port, chat(max_tokens=1))).status == 200
            assert await asyncio.to_thread(_count, idle) == 3
            assert await asyncio.to_thread(_count, busy) == 1
        await foreign.close()


def _count(engine: MockEngine) -> int:
    return len(engine.requests())


async def test_a_replica_that_nobody_listens_at_is_left_alone_before_a_request_finds_out(tmp_path: Path) -> None:
    with mock_engine("--key", "engine-secret") as engine:
        plane = FakePlane(engines=[engine.url, "http://127.0.0.1:9"])
        async with running(plane, tmp_path) as gateway:
            silent = next(e.target for e in gateway.gateway.directory.engines if e.route.id == "rep_1")

            async def open_() -> bool:
                return silent.breaker.failures >= FAILURES_TO_OPEN

            await until_async(open_, seconds=15, what="the breaker to open")
            assert value(await page(gateway), "replica_healthy", model="mock-model", replica="rep_1") == 0
            assert value(await page(gateway), "replica_healthy", model="mock-model", replica="rep_0") == 1


async def test_the_page_tells_times_tokens_and_hits_by_model_and_replica_and_refusals_by_reason(tmp_path: Path) -> None:
    with mock_engine("--key", "engine-secret", "--interval-ms", "2") as engine:
        async with running(FakePlane(engines=[engine.url]), tmp_path) as gateway:
            streamed = await post(gateway.port, chat("a prompt of some length", max_tokens=5, stream=True))
            assert streamed.events()[-1] == "[DONE]"
            assert (await post(gateway.port, chat(max_tokens=3))).status == 200
            await post(gateway.port, chat(n=1_000))
            await post(gateway.port, chat("!long"))
            await post(gateway.port, chat(model="a-name-of-the-clients-choice"))
            told = await page(gateway)
    at = {"model": "mock-model", "replica": "rep_0"}
    assert value(told, "time_to_first_token_seconds_count", **at) == 1
    assert value(told, "inter_token_seconds_count", **at) == 1
    assert 0.001 < value(told, "inter_token_seconds_sum", **at) < 1
    assert value(told, "queue_seconds_count", **at) == 2
    assert value(told, "output_tokens_total", **at) == 8
    assert 0 < value(told, "prefix_hit_tokens_total", **at) < value(told, "prompt_tokens_total", **at)
    assert value(told, "refusals_total", model="mock-model", code="context_length_exceeded") == 1
    assert value(told, "refusals_total", model="", code="out_of_range") == 1
    assert value(told, "refusals_total", model="", code="model_not_found") == 1
    assert "clients-choice" not in told
