"""What no SDK has words for, over plain HTTP: rerank, score, tokenize, a key's own spend, structured outputs."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conformance.conftest import CHAT, PICTURES, VECTORS, Place
from tests.support.coverage import covers
from tests.support.until import until


@pytest.fixture
def client(place: Place) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {place.key}"}
    with httpx.Client(base_url=place.gateway.url, headers=headers, trust_env=False) as made:
        yield made


def spent(client: httpx.Client) -> int:
    return int(client.get("/v1/usage").raise_for_status().json()["spent_micro_yuan"])


@covers("HTTP", "/v1/rerank", "plain", "errors")
@covers("HTTP", "/rerank", "plain", "errors")
def test_documents_are_reranked_by_a_model_that_can(client: httpx.Client) -> None:
    for path in ("/v1/rerank", "/rerank"):
        body: dict[str, Any] = {"model": VECTORS, "query": "rivers", "documents": ["a", "b", "c"]}
        answer = client.post(path, json=body).raise_for_status().json()
        assert answer["model"] == VECTORS
        assert [row["index"] for row in answer["results"]] == [2, 1, 0]
        refused = client.post(path, json=body | {"model": CHAT})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_by_model")


@covers("HTTP", "/v1/score", "plain", "errors")
@covers("HTTP", "/score", "plain", "errors")
def test_pairs_are_scored_by_a_model_that_can(client: httpx.Client) -> None:
    for path in ("/v1/score", "/score"):
        body = {"model": VECTORS, "text_1": "rivers", "text_2": ["a", "b"]}
        assert [row["score"] for row in client.post(path, json=body).json()["data"]] == [0.5, 0.5]
        refused = client.post(path, json=body | {"model": PICTURES})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_by_model")


@covers("HTTP", "/v1/tokenize", "plain", "free of charge")
@covers("HTTP", "/tokenize", "plain", "free of charge")
@covers("HTTP", "/v1/usage", "a key's own spend")
def test_a_key_sees_its_own_spend_and_counting_tokens_and_refusals_cost_nothing(
    client: httpx.Client, place: Place
) -> None:
    client.headers["Authorization"] = f"Bearer {place.spending_key}"
    assert spent(client) == 0
    for path in ("/v1/tokenize", "/tokenize"):
        assert client.post(path, json={"model": CHAT, "prompt": "a river"}).raise_for_status().json()["count"] > 0
    assert client.post("/v1/embeddings", json={"model": CHAT, "input": "a"}).status_code == 400
    chat = {"model": CHAT, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1_000}
    usage = client.post("/v1/chat/completions", json=chat).raise_for_status().json()["usage"]
    paid = until(lambda: spent(client) or None, seconds=20, what="the answer to be on the key's account")
    uncached = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    assert abs(paid - (uncached + 2 * usage["completion_tokens"])) <= usage["prompt_tokens"], "micro-yuan a token"
    other = httpx.get(f"{client.base_url}/v1/usage", headers={"Authorization": "Bearer hl_nobody_nothing"})
    assert (other.status_code, other.json()["error"]["code"]) == (401, "invalid_api_key")


@covers("HTTP", "/v1/models", "only what the key may use")
def test_a_key_for_one_model_sees_and_uses_that_one_only(place: Place) -> None:
    headers = {"Authorization": f"Bearer {place.narrow_key}"}
    with httpx.Client(base_url=place.gateway.url, headers=headers, trust_env=False) as client:
        assert [row["id"] for row in client.get("/v1/models").json()["data"]] == [VECTORS]
        refused = client.post("/v1/chat/completions", json={"model": CHAT, "messages": []})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


@covers("HTTP", "/v1/chat/completions", "image by address refused where it is private")
def test_a_private_address_is_never_fetched(client: httpx.Client) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://169.254.169.254/latest"}}
    body = {"model": PICTURES, "messages": [{"role": "user", "content": [picture]}]}
    refused = client.post("/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "image_not_fetched")
