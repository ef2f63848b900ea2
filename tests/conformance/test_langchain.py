"""langchain-openai."""

from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.conformance.conftest import CHAT, VECTORS, Place
from tests.support.coverage import covers


def chat(place: Place, **more: Any) -> Any:
    settings: dict[str, Any] = {"base_url": place.base, "api_key": place.key, "model": CHAT, "max_retries": 0}
    return ChatOpenAI(**settings | more)


@covers("langchain-openai", "/v1/chat/completions", "plain", "streamed")
def test_it_chats_and_streams(place: Place) -> None:
    assert chat(place, max_tokens=4).invoke("hello").content == "tok " * 4
    whole: AIMessageChunk | None = None
    for chunk in chat(place, max_tokens=4, stream_usage=True).stream("hello"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None and whole.content == "tok " * 4
    assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] == 4


@covers("langchain-openai", "/v1/chat/completions", "tools")
def test_it_binds_tools(place: Place) -> None:
    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    answer = chat(place).bind_tools([weather]).invoke("!tool")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("weather", {"city": "Wuhan"})]


@covers("langchain-openai", "/v1/responses", "plain")
def test_it_uses_the_responses_api(place: Place) -> None:
    assert chat(place, use_responses_api=True, max_tokens=4).invoke("hello").text == "tok " * 4


@covers("langchain-openai", "/v1/embeddings", "several inputs")
def test_it_embeds_documents(place: Place) -> None:
    settings: dict[str, Any] = {"base_url": place.base, "api_key": place.key, "model": VECTORS}
    vectors = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)  # else it sends token ids of its own
    assert vectors.embed_documents(["a", "b"]) == [[0.0, 1.0]] * 2


@covers("langchain-openai", "/v1/chat/completions", "errors")
def test_it_sees_the_gateways_errors(place: Place) -> None:
    with pytest.raises(openai.NotFoundError):
        chat(place).invoke("hello", model="no-such-model")
