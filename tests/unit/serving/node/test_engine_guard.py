from typing import Any

import pytest

from serving.node.engine_guard import OnlyWithKey


async def status(path: str, *, key: str | None, kind: str = "http") -> int:
    """What a caller gets; 200 is the engine's own answer."""
    sent: list[Any] = []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [(b"authorization", b"Bearer " + key.encode())] if key else []
    await OnlyWithKey(engine)({"type": kind, "path": path, "headers": headers, "method": "POST"}, receive, send)
    return sent[0]["status"]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "the-key")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/load_lora_adapter", "/metrics", "/tokenize", "/version"])
async def test_what_is_used_needs_the_key(path: str) -> None:
    assert await status(path, key="the-key") == 200
    assert await status(path, key=None) == 401
    assert await status(path, key="another") == 401


@pytest.mark.parametrize(
    "path", ["/invocations", "/inference/v1/generate", "/adapters", "/docs", "/", "/scale_elastic_ep"]
)
async def test_what_is_not_used_is_not_there_even_with_the_key(path: str) -> None:
    assert await status(path, key="the-key") == 404


async def test_what_the_cache_holds_is_told_to_who_has_the_key_where_the_engine_publishes_it() -> None:
    assert await status("/heliu/cache", key=None) == 401
    assert await status("/heliu/cache", key="the-key") == 404


async def test_the_health_check_is_open() -> None:
    assert await status("/health", key=None) == 200


async def test_websockets_are_refused() -> None:
    assert await status("/v1/realtime", key="the-key", kind="websocket") == 404
