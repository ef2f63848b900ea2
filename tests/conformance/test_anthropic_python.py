"""The official Anthropic SDK for Python."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.conformance.conftest import CHAT, Place
from tests.support.coverage import covers

ASK: Any = [{"role": "user", "content": "hello"}]
ASK_TOOL: Any = [{"role": "user", "content": "!tool"}]
TOOLS: Any = [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]


@pytest.fixture
def client(place: Place) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=place.gateway.url, api_key=place.key, max_retries=0) as made:
        yield made


@covers("anthropic Python", "/v1/messages", "plain", "system prompt")
def test_it_gets_a_message(client: anthropic.Anthropic) -> None:
    answer: Any = client.messages.create(model=CHAT, messages=ASK, max_tokens=5, system="be brief")
    assert (answer.content[0].text, answer.stop_reason, answer.model) == ("tok " * 5, "max_tokens", CHAT)
    assert answer.usage.output_tokens == 5
    assert answer._request_id.startswith("req_"), "what a question to the platform names"


@covers("anthropic Python", "/v1/messages", "streamed")
def test_it_streams_a_message(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=CHAT, messages=ASK, max_tokens=5) as stream:
        assert "".join(stream.text_stream) == "tok " * 5
        assert stream.get_final_message().usage.output_tokens == 5


@covers("anthropic Python", "/v1/messages", "tools", "tools, streamed")
def test_it_uses_tools_plain_and_streamed(client: anthropic.Anthropic) -> None:
    plain: Any = client.messages.create(model=CHAT, messages=ASK_TOOL, max_tokens=9, tools=TOOLS)
    with client.messages.stream(model=CHAT, messages=ASK_TOOL, max_tokens=9, tools=TOOLS) as stream:
        streamed: Any = stream.get_final_message()
    for answer in (plain, streamed):
        assert answer.stop_reason == "tool_use"
        assert (answer.content[0].name, answer.content[0].input) == ("weather", {"city": "Wuhan"})


@covers("anthropic Python", "/v1/messages/count_tokens", "plain")
def test_it_counts_tokens(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model=CHAT, messages=ASK).input_tokens > 0


@covers("anthropic Python", "/v1/messages", "errors")
def test_its_errors_are_the_sdks_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="no-such-model", messages=ASK, max_tokens=1)
    with pytest.raises(anthropic.NotFoundError) as uncounted:
        client.messages.count_tokens(model="no-such-model", messages=ASK)
    for refused in (unknown.value, uncounted.value):
        body: Any = refused.body
        assert body["type"] == "error" and body["error"]["type"] == "not_found_error"
        assert refused.request_id is not None and refused.request_id.startswith("req_")
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="hl_nobody_nothing").messages.create(model=CHAT, messages=ASK, max_tokens=1)
