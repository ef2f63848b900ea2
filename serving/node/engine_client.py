"""What the replica host asks of its engine: whether it lives, one real token, its counters, adapters in and out."""

import asyncio
from pathlib import Path

import httpx

from serving.node.metrics import Reading, parse

_QUICK = httpx.Timeout(5)
_COUNTED_TRIES, _COUNTED_SECONDS = 40, 0.05
_SLOW = httpx.Timeout(120, connect=5)


class EngineRefused(Exception):
    """The engine answered no."""


class EngineSilent(Exception):
    """The engine did not answer, or with an error of its own."""


class EngineClient:
    """Speaks to one engine with its key."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=_QUICK)

    async def is_up(self) -> bool:
        """Whether its health check answers."""
        try:
            return (await self._http.get("/health")).is_success
        except httpx.HTTPError:
            return False

    async def warm_up(self, model: str, *, embeds: bool) -> Reading:
        """One real token (or embedding) through everything a request passes; the counters it left.

        Raises EngineRefused or EngineSilent.
        """
        if embeds:
            await self._post("/v1/embeddings", {"model": model, "input": "warm"})
        else:
            await self._post("/v1/completions", {"model": model, "prompt": "warm", "max_tokens": 1, "temperature": 0})
        reading = await self.read()
        for _ in range(_COUNTED_TRIES):  # the engine counts a moment after it has answered
            if reading.prompt_tokens > 0 and (embeds or reading.generation_tokens > 0):
                break
            await asyncio.sleep(_COUNTED_SECONDS)
            reading = await self.read()
        return reading

    async def read(self) -> Reading:
        """Its counters now. Raises EngineSilent."""
        try:
            page = (await self._http.get("/metrics")).raise_for_status().text
            return parse(page)
        except (httpx.HTTPError, ValueError) as error:
            raise EngineSilent(f"no metrics: {type(error).__name__}") from None

    async def load(self, adapter_id: str, folder: Path) -> None:
        """Take an adapter from a folder. One it has already stays. Raises EngineRefused or EngineSilent."""
        if adapter_id not in await self.loaded():
            await self._post("/v1/load_lora_adapter", {"lora_name": adapter_id, "lora_path": str(folder)})

    async def unload(self, adapter_id: str) -> None:
        """Forget an adapter. One it has not is fine. Raises EngineRefused or EngineSilent."""
        if adapter_id in await self.loaded():
            await self._post("/v1/unload_lora_adapter", {"lora_name": adapter_id})

    async def loaded(self) -> set[str]:
        """Names of the models it answers to, adapters among them. Raises EngineSilent."""
        try:
            answer = (await self._http.get("/v1/models")).raise_for_status().json()
            return {str(model["id"]) for model in answer["data"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EngineSilent(f"no models: {type(error).__name__}") from None

    async def close(self) -> None:
        """Let go of its connections."""
        await self._http.aclose()

    async def _post(self, path: str, body: dict[str, object]) -> None:
        try:
            response = await self._http.post(path, json=body, timeout=_SLOW)
        except httpx.HTTPError as error:
            raise EngineSilent(f"{path}: {type(error).__name__}") from None
        if response.is_success:
            return
        kind = EngineRefused if response.status_code < 500 or path.endswith("_adapter") else EngineSilent
        raise kind(f"{path}: HTTP {response.status_code} {response.text[:300]}")
