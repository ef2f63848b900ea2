"""The official openai SDK for Python."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.conformance.conftest import CHAT, PICTURES, VECTORS, Place
from tests.support.coverage import covers

ASK: Any = [{"role": "user", "content": "hello"}]
ASK_TOOL: Any = [{"role": "user", "content": "!tool"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5E"
    "rkJggg=="
)


@pytest.fixture
def client(place: Place) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=place.base, api_key=place.key, max_retries=0) as made:
        yield made


@covers("openai Python", "/v1/models", "list", "one model")
def test_it_lists_the_models_a_key_may_use(client: openai.OpenAI) -> None:
    assert sorted(model.id for model in client.models.list()) == sorted([CHAT, PICTURES, VECTORS])
    assert client.models.retrieve(CHAT).owned_by == "bench"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


@covers("openai Python", "/v1/chat/completions", "plain", "n > 1", "logprobs passed on")
def test_it_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=ASK, max_tokens=5, n=2, logprobs=True)
    assert [choice.message.content for choice in answer.choices] == ["tok " * 5] * 2
    assert answer.model == CHAT
    assert answer.usage is not None and answer.usage.completion_tokens == 10


@covers("openai Python", "/v1/chat/completions", "streamed", "usage in the stream")
def test_it_streams_and_usage_comes_only_when_asked_for(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=CHAT, messages=ASK, max_tokens=5, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "tok " * 5
    assert all(chunk.usage is None for chunk in chunks)
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model=CHAT, messages=ASK, max_tokens=5, stream=True, stream_options=options)
    )
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 5


@covers("openai Python", "/v1/chat/completions", "tools", "tools, streamed")
def test_it_calls_tools_plain_and_streamed(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model=CHAT, messages=ASK_TOOL, tools=TOOLS).choices[0]
    assert plain.finish_reason == "tool_calls" and plain.message.tool_calls
    call: Any = plain.message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Wuhan"}')
    with client.chat.completions.stream(model=CHAT, messages=ASK_TOOL, tools=TOOLS) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls and final.message.tool_calls[0].function.arguments == '{"city":"Wuhan"}'


@covers("openai Python", "/v1/chat/completions", "image as data URL")
def test_it_sends_an_image_to_a_model_that_sees_and_not_to_one_that_does_not(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    messages: Any = [{"role": "user", "content": parts}]
    assert client.chat.completions.create(model=PICTURES, messages=messages, max_tokens=2).usage
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=CHAT, messages=messages)
    assert refused.value.code == "unsupported_by_model"


@covers("openai Python", "/v1/completions", "plain", "streamed", "several prompts")
def test_it_completes_text(client: openai.OpenAI) -> None:
    assert client.completions.create(model=CHAT, prompt="once", max_tokens=3).choices[0].text == "tok tok tok "
    chunks = client.completions.create(model=CHAT, prompt=["once", "twice"], max_tokens=3, stream=True)
    assert "tok tok tok " in "".join(chunk.choices[0].text for chunk in chunks)


@covers("openai Python", "/v1/responses", "plain", "streamed", "tools")
def test_it_asks_for_responses(client: openai.OpenAI) -> None:
    assert client.responses.create(model=CHAT, input="hello", max_output_tokens=4).output_text == "tok " * 4
    with client.responses.stream(model=CHAT, input="hello", max_output_tokens=4) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "tok " * 4
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    tool: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
    called: Any = client.responses.create(model=CHAT, input="!tool", tools=[tool]).output[0]
    assert (called.type, called.arguments) == ("function_call", '{"city":"Wuhan"}')


@covers("openai Python", "/v1/embeddings", "one input", "several inputs", "base64")
def test_it_embeds(client: openai.OpenAI) -> None:
    many = client.embeddings.create(model=VECTORS, input=["a", "b", "c"])  # the SDK asks for base64 and unpacks it
    assert [row.embedding for row in many.data] == [[0.0, 1.0]] * 3
    one = client.embeddings.create(model=VECTORS, input="a", encoding_format="float")
    assert one.data[0].embedding == [0.0, 1.0]


@covers("openai Python", "/v1/chat/completions", "errors")
def test_its_errors_are_the_sdks_own(client: openai.OpenAI, place: Place) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no-such-model", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "!long"}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="hl_nobody_nothing").chat.completions.create(model=CHAT, messages=ASK)
    slow = client.with_options(api_key=place.slow_key)
    slow.chat.completions.create(model=CHAT, messages=ASK, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as limited:
        slow.chat.completions.create(model=CHAT, messages=ASK, max_tokens=1)
    assert int(limited.value.response.headers["retry-after"]) >= 1


@covers("openai Python", "/v1/embeddings", "errors")
def test_what_a_model_cannot_do_is_refused_before_it_costs_anything(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.embeddings.create(model=CHAT, input="a")
    assert wrong.value.code == "unsupported_by_model"
    with pytest.raises(openai.BadRequestError) as mute:
        client.chat.completions.create(model=VECTORS, messages=ASK)
    assert mute.value.code == "unsupported_by_model"
