"""A request through a gateway in this process to a mock engine: what arrives, what comes back, what is billed."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import Rate, reserve
from serving.gateway import shipper
from serving.gateway.endpoints import ENDPOINTS, Family, decode
from serving.gateway.openai_errors import Refusal
from serving.gateway.server import RunningGateway
from serving.metering import Outcome, Tokens
from tests.support.gateways import KEY, MODEL, Answer, FakePlane, RawClient, billed, chat, grant, post, request, running
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", "engine-secret", "--adapters", "adp_1", "--keep-bodies") as started:
        yield started


@pytest.fixture
def plane(engine: MockEngine) -> FakePlane:
    return FakePlane(engines=[engine.url])


@pytest.fixture
async def gateway(plane: FakePlane, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running(plane, tmp_path) as started:
        yield started


async def test_a_plain_chat_answers_under_the_name_asked_for_and_is_billed_as_the_engine_counted(
    gateway: RunningGateway, plane: FakePlane
) -> None:
    answer = await post(gateway.port, chat(max_tokens=5))
    assert answer.status == 200
    assert answer.json()["model"] == MODEL
    assert answer.json()["usage"]["completion_tokens"] == 5
    prompt = answer.json()["usage"]["prompt_tokens"]
    assert await billed(plane) == [(Tokens(prompt, prompt // 2, 5), Outcome.COMPLETED)]
    assert answer.headers["x-request-id"] == plane.records[0].subject.id


async def test_an_adapter_is_asked_for_by_its_id_and_answers_under_its_name(
    gateway: RunningGateway, plane: FakePlane, engine: MockEngine
) -> None:
    plane.adapters[("firm_1", "lore")] = "adp_1"
    plane.loaded.add("adp_1")

    async def listed() -> bool:
        return gateway.gateway.directory.find("firm_1", "lore", None) is not None

    await until_async(listed, seconds=5, what="the adapter in the route table")
    answer = await post(gateway.port, chat(model="lore", cache_salt="mine", request_id="x"))
    sent = engine.requests()[-1]["body"]
    assert (answer.status, answer.json()["model"]) == (200, "lore")
    assert (sent["model"], sent["cache_salt"]) == ("adp_1", "firm_1")
    assert "request_id" not in sent
    assert "x-api-key" not in engine.requests()[-1]["headers"]


async def test_a_stream_hides_the_usage_that_was_not_asked_for_and_is_billed_by_it(
    gateway: RunningGateway, plane: FakePlane, engine: MockEngine
) -> None:
    answer = await post(gateway.port, chat(stream=True, max_tokens=7))
    events = answer.events()
    assert events[-1] == "[DONE]"
    assert all("usage" not in event and event["model"] == MODEL for event in events[:-1])
    assert sum(event["choices"][0]["delta"].get("content") == "tok " for event in events[:-1]) == 7
    tokens, outcome = (await billed(plane))[0]
    assert (tokens.output, outcome) == (7, Outcome.COMPLETED)
    assert tokens.cached_input == tokens.input // 2
    options = engine.requests()[-1]["body"]["stream_options"]
    assert options == {"include_usage": True, "continuous_usage_stats": True}


async def test_a_client_that_asks_for_usage_gets_it_in_the_last_chunk_only(gateway: RunningGateway) -> None:
    answer = await post(gateway.port, chat(stream=True, max_tokens=3, stream_options={"include_usage": True}))
    events = answer.events()[:-1]
    assert [event["usage"] is None for event in events] == [True] * (len(events) - 1) + [False]
    assert events[-1]["choices"] == []


async def test_a_client_that_asks_for_continuous_usage_gets_it_in_every_chunk(gateway: RunningGateway) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = await post(gateway.port, chat(stream=True, max_tokens=3, stream_options=options))
    assert all(event["usage"] for event in answer.events()[:-1])


async def test_several_choices_of_a_stream_are_billed_together(gateway: RunningGateway, plane: FakePlane) -> None:
    await post(gateway.port, chat(stream=True, max_tokens=4, n=3))
    assert (await billed(plane))[0][0].output == 12


@pytest.mark.parametrize(
    ("path", "body", "output"),
    [
        ("/v1/completions", {"model": MODEL, "prompt": "a"}, 16),
        ("/v1/messages", {"model": MODEL, "max_tokens": 6, "messages": [{"role": "user", "content": "a"}]}, 6),
        ("/v1/responses", {"model": MODEL, "input": "a", "max_output_tokens": 6}, 6),
        ("/v1/embeddings", {"model": MODEL, "input": ["a", "b"]}, 0),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_endpoint_is_answered_and_billed(
    gateway: RunningGateway, plane: FakePlane, path: str, body: dict[str, object], output: int, stream: bool
) -> None:
    more = {"stream": True} if stream and output else {}
    answer = await post(gateway.port, body | more, path=path)
    assert answer.status == 200
    tokens, outcome = (await billed(plane))[0]
    assert (tokens.output, outcome) == (output, Outcome.COMPLETED)
    assert tokens.input > 0
    assert b"engine-secret" not in answer.body


@pytest.mark.parametrize("stream", [False, True])
async def test_an_output_bound_of_null_is_the_default_that_is_reserved_for(
    gateway: RunningGateway, plane: FakePlane, engine: MockEngine, stream: bool
) -> None:
    body = {"model": MODEL, "prompt": "a", "max_tokens": None, "n": None, "stream": stream}
    await post(gateway.port, body, path="/v1/completions")
    assert (await billed(plane))[0][0].output == 16
    assert engine.requests()[-1]["body"].keys().isdisjoint({"max_tokens", "n"})


@given(
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"]),
    bounds=st.dictionaries(
        st.sampled_from(["max_tokens", "max_completion_tokens", "max_output_tokens", "n"]),
        st.none() | st.integers(-2, 3_000) | st.just(10**30),
    ),
)
def test_no_answer_that_a_body_lets_an_engine_give_is_larger_than_the_reserve(
    path: str, bounds: dict[str, int | None]
) -> None:
    context, prompt = 2_048, 1
    endpoint = ENDPOINTS[path.encode()]
    asked = decode(endpoint, json.dumps({"model": MODEL, "prompt": "a"} | bounds).encode(), b"application/json")
    if isinstance(asked, Refusal):
        return
    kept = reserve(asked.shape, Rate(1, 1, 1), context)
    sent = json.loads(asked.for_engine(engine_model=MODEL, salt="", output_tokens_max=context))
    assert all(sent[name] is not None for name in (*endpoint.output_fields, "n") if name in sent)
    stated = next((sent[name] for name in endpoint.output_fields if name in sent), None)
    if stated is None:
        stated = 16 if path == "/v1/completions" else context
    choices = sent.get("n", 1) if endpoint.family is Family.OPENAI else 1
    assert choices * min(stated, context - prompt) <= kept.tokens


async def test_counting_tokens_costs_nothing(gateway: RunningGateway, plane: FakePlane) -> None:
    for path in ("/v1/tokenize", "/tokenize", "/v1/messages/count_tokens"):
        answer = await post(gateway.port, chat(), path=path)
        assert answer.status == 200
    assert plane.records == []
    assert gateway.gateway.shipper.backlog == 0


async def test_an_engine_that_breaks_off_is_said_so_and_billed_as_far_as_it_came(
    gateway: RunningGateway, plane: FakePlane
) -> None:
    answer = await post(gateway.port, chat("!drop-after-5", stream=True, max_tokens=50))
    assert answer.events()[-1]["error"]["code"] == "engine_failed"
    assert [(tokens.output, outcome) for tokens, outcome in await billed(plane)] == [(5, Outcome.ENGINE_FAILED)]


async def test_a_request_goes_to_another_replica_when_the_first_cannot_be_reached(
    plane: FakePlane, tmp_path: Path
) -> None:
    plane.engines = ["http://127.0.0.1:9", *plane.engines]
    async with running(plane, tmp_path) as gateway:
        answers = [await post(gateway.port, chat(max_tokens=1)) for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 6


async def test_a_replica_that_never_answers_ends_in_a_refusal(plane: FakePlane, tmp_path: Path) -> None:
    plane.engines = ["http://127.0.0.1:9"]
    async with running(plane, tmp_path, tries_max=2, wait_seconds=0.3) as gateway:
        answer = await post(gateway.port, chat())
    assert answer.status == 503
    assert answer.json()["error"]["code"] in ("engine_unavailable", "model_not_ready")


async def test_a_request_waits_for_a_replica_that_is_coming(
    plane: FakePlane, tmp_path: Path, engine: MockEngine
) -> None:
    plane.engines = []
    async with running(plane, tmp_path) as gateway:
        client = await RawClient.to(gateway.port)
        client.send(request(chat(max_tokens=1)))

        async def waits() -> bool:
            return gateway.gateway.gauges()["requests_waiting"] == 1

        await until_async(waits, seconds=5, what="the request to wait")
        plane.engines = [engine.url]
        assert (await client.answer()).status == 200
        await client.close()


async def test_a_request_that_waited_too_long_is_told_what_for(plane: FakePlane, tmp_path: Path) -> None:
    plane.adapters[("firm_1", "lore")] = "adp_1"
    async with running(plane, tmp_path, wait_seconds=0.2) as gateway:
        answer = await post(gateway.port, chat(model="lore"))
        assert (answer.status, answer.json()["error"]["code"]) == (503, "adapter_not_ready")
        assert answer.headers["retry-after"] == "5"

        async def wanted() -> bool:
            return plane.asked_adapters == {"adp_1"}

        await until_async(wanted, seconds=5, what="the adapter to be asked for")


async def test_unknown_revoked_and_missing_keys_are_refused_alike(gateway: RunningGateway, plane: FakePlane) -> None:
    assert (await post(gateway.port, chat())).status == 200
    answer = await post(gateway.port, chat(), key="hl_key1_wrong")
    assert (answer.status, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    del plane.grants[KEY]
    plane.notices.put_nowait("key_1")

    async def refused() -> bool:
        return (await post(gateway.port, chat(max_tokens=1))).status == 401

    await until_async(refused, seconds=2, what="the revocation")


async def test_a_lost_notice_of_a_revocation_costs_less_than_two_seconds(
    gateway: RunningGateway, plane: FakePlane
) -> None:
    assert (await post(gateway.port, chat())).status == 200
    del plane.grants[KEY]

    async def refused() -> bool:
        return (await post(gateway.port, chat(max_tokens=1))).status == 401

    await until_async(refused, seconds=2, what="the revocation")


async def test_known_keys_are_honoured_while_the_database_is_away(gateway: RunningGateway, plane: FakePlane) -> None:
    assert (await post(gateway.port, chat(max_tokens=1))).status == 200
    plane.down = True

    async def offline() -> bool:
        assert (await post(gateway.port, chat(max_tokens=1))).status == 200
        return bool(gateway.gateway.gauges()["database_offline"]) and bool(gateway.gateway.gauges()["ledger_late"])

    await until_async(offline, seconds=5, what="the gateway to notice")
    assert (await post(gateway.port, chat(max_tokens=1))).status == 200
    assert (await post(gateway.port, chat(), key="hl_new_key")).status == 503
    owed = gateway.gateway.shipper.backlog
    plane.down = False

    async def shipped() -> bool:
        return gateway.gateway.shipper.backlog == 0

    await until_async(shipped, seconds=10, what="the backlog to be shipped")
    assert owed > 0


async def test_known_keys_are_refused_once_the_database_was_away_too_long(plane: FakePlane, tmp_path: Path) -> None:
    async with running(plane, tmp_path, offline_seconds=2) as gateway:
        assert (await post(gateway.port, chat(max_tokens=1))).status == 200
        plane.down = True
        seen: list[int] = []

        async def refused() -> bool:
            answer = await post(gateway.port, chat(max_tokens=1))
            seen.append(answer.status)
            return answer.status == 503

        await until_async(refused, seconds=10, what="the refusal")
        assert seen[0] == 200
        plane.down = False
        assert (await post(gateway.port, chat(max_tokens=1))).status == 200


async def test_too_much_unshipped_usage_stops_admission(
    plane: FakePlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "ROTATE_BYTES", 1_000)  # a segment of 8 MiB holds a few records
    async with running(plane, tmp_path, backlog_bytes_max=16 << 20) as gateway:
        assert (await post(gateway.port, chat(max_tokens=1))).status == 200
        plane.down = True

        async def refused() -> Answer | None:
            answer = await post(gateway.port, chat(max_tokens=1))
            return answer if answer.status == 503 else None

        answer = await until_async(refused, seconds=10, what="the refusal")
        assert answer.json()["error"]["code"] == "ledger_unreachable"
        plane.down = False

        async def again() -> bool:
            return (await post(gateway.port, chat(max_tokens=1))).status == 200

        await until_async(again, seconds=10, what="admission to go on")


async def test_a_key_sees_base_models_and_its_firms_adapters_only(gateway: RunningGateway, plane: FakePlane) -> None:
    plane.adapters |= {("firm_1", "lore"): "adp_1", ("firm_2", "secret"): "adp_2"}
    plane.grants["hl_two"] = grant(2, firm=2, models=frozenset({"secret"}))

    async def names(key: str) -> list[str]:
        client = await RawClient.to(gateway.port)
        client.send(f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        try:
            return [row["id"] for row in (await client.answer()).json()["data"]]
        finally:
            await client.close()

    async def listed() -> bool:
        return await names(KEY) == [MODEL, "lore"] and await names("hl_two") == ["secret"]

    await until_async(listed, seconds=5, what="the models")
    assert (await post(gateway.port, chat(model="secret"))).json() == (
        (await post(gateway.port, chat(model="nothing"))).json() | {"error": {
            "message": "the model `secret` does not exist or is not yours", "type": "invalid_request_error",
            "param": "model", "code": "model_not_found",
        }}
    )  # fmt: skip


async def test_a_key_is_held_to_its_requests_per_minute(gateway: RunningGateway, plane: FakePlane) -> None:
    plane.grants["hl_slow"] = grant(3, requests_per_minute=3)
    answers = [await post(gateway.port, chat(max_tokens=1), key="hl_slow") for _ in range(5)]
    statuses = [answer.status for answer in answers]
    assert statuses[:3] == [200, 200, 200]
    assert 429 in statuses[3:]
    limited = answers[-1]
    assert limited.json()["error"]["code"] == "requests_per_minute"
    assert 0 < int(limited.headers["retry-after"]) <= 60
    assert limited.headers["x-ratelimit-limit-requests"] == "3"


async def test_a_request_that_the_money_does_not_cover_is_refused_and_one_that_it_covers_is_not(
    gateway: RunningGateway, plane: FakePlane
) -> None:
    plane.grants["hl_poor"] = grant(4, firm=3)
    plane.money["firm_3"] = 1_000
    answer = await post(gateway.port, chat(max_tokens=1000), key="hl_poor")
    assert (answer.status, answer.json()["error"]["code"]) == (402, "insufficient_quota")
    assert (await post(gateway.port, chat(max_tokens=10), key="hl_poor")).status == 200


async def test_a_dedicated_model_is_served_to_its_firm_only_and_costs_no_tokens(
    plane: FakePlane, tmp_path: Path
) -> None:
    plane.dedicated_to, plane.money["firm_1"] = "firm_1", 0
    plane.grants["hl_two"] = grant(2, firm=2)
    async with running(plane, tmp_path) as gateway:
        assert (await post(gateway.port, chat())).status == 200
        assert (await post(gateway.port, chat(), key="hl_two")).status == 404
        await billed(plane)
    assert plane.records[0].subject.dedicated
    assert plane.records[0].subject.lease_id is None


async def test_a_conversation_goes_back_to_the_replica_that_holds_its_beginning(
    plane: FakePlane, tmp_path: Path
) -> None:
    with mock_engine("--keep-bodies") as one, mock_engine("--keep-bodies") as two:
        plane.engines = [one.url, two.url]
        async with running(plane, tmp_path) as gateway:
            for turn in range(4):
                for story in "ab":
                    text = story * 4_000 + "and then " * turn
                    assert (await post(gateway.port, chat(text, max_tokens=1))).status == 200
        seen = [{r["body"]["messages"][0]["content"][0] for r in engine.requests()} for engine in (one, two)]
    assert sorted(map(sorted, seen)) == [["a"], ["b"]]
