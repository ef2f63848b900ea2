"""The official openai and Anthropic SDKs for Node; their programs stand in node/."""

import pytest

from tests.conformance.conftest import CHAT, PICTURES, VECTORS, Node
from tests.support.coverage import covers

pytestmark = pytest.mark.timeout(240)  # npm may have to fetch the SDKs first


@covers("openai Node", "/v1/models", "list")
@covers("openai Node", "/v1/chat/completions", "plain", "streamed", "usage in the stream", "tools", "tools, streamed")
@covers("openai Node", "/v1/chat/completions", "errors")
@covers("openai Node", "/v1/completions", "plain")
@covers("openai Node", "/v1/responses", "plain", "streamed")
@covers("openai Node", "/v1/embeddings", "several inputs", "base64", "errors")
def test_the_openai_sdk_finds_everything_it_expects(node: Node) -> None:
    assert node.run("openai.mjs", CHAT=CHAT, VECTORS=VECTORS) == {
        "models": sorted([CHAT, PICTURES, VECTORS]),
        "plain": [CHAT, "tok " * 4, 4],
        "streamed": ["tok " * 4, 4],
        "tool": {"name": "weather", "arguments": '{"city":"Wuhan"}'},
        "tool_streamed": '{"city":"Wuhan"}',
        "completion": "tok tok ",
        "response": "tok " * 3,
        "response_streamed": ["response.created", "response.completed"],
        "embeddings": [[0, 1]] * 2,
        "errors": [
            ["NotFoundError", 404, "model_not_found"],
            ["BadRequestError", 400, "unsupported_by_model"],
            ["AuthenticationError", 401, "invalid_api_key"],
        ],
    }


@covers("anthropic Node", "/v1/messages", "plain", "streamed", "tools, streamed", "errors")
@covers("anthropic Node", "/v1/messages/count_tokens", "plain")
def test_the_anthropic_sdk_finds_everything_it_expects(node: Node) -> None:
    seen = node.run("anthropic.mjs", CHAT=CHAT)
    assert seen.pop("counted") > 0
    assert seen == {
        "plain": ["tok " * 4, "max_tokens", 4],
        "streamed": ["tok " * 4, 4],
        "tool": ["tool_use", {"city": "Wuhan"}],
        "error": ["NotFoundError", 404, "not_found_error"],
    }
