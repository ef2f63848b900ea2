"""The replica host's side of /internal/v1/replicas/{attempt_id} on the control plane."""

from collections.abc import AsyncIterator
from typing import Literal
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.vocabulary import ReplicaCommand, SyncReport

_SYNC_TIMEOUT = httpx.Timeout(10, connect=3)
_FILE_TIMEOUT = httpx.Timeout(60, connect=5)
AdapterFile = Literal["adapter_config.json", "adapter_model.safetensors"]


class Away(Exception):
    """The control plane does not answer, or not sensibly: ask again later."""


class Refused(Exception):
    """The control plane answered no."""


class FenceLost(Exception):
    """A newer attempt runs this replica: stop at once."""


class Order(BaseModel):
    """`serving.vocabulary.AdapterOrder`."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(pattern=r"^adp_[0-9a-z]{8,40}$")
    lora_name: str
    url: str = Field(pattern=r"^/")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Reply(BaseModel):
    """`serving.vocabulary.SyncReply`."""

    model_config = ConfigDict(frozen=True)

    command: ReplicaCommand
    adapters: list[Order]
    poll_seconds: float = Field(gt=0, le=60)


class ControlClient:
    """Speaks as the attempt."""

    def __init__(self, url: str, attempt_id: str, token: str) -> None:
        self._sync_path = f"/internal/v1/replicas/{quote(attempt_id, safe='')}/sync"
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=_SYNC_TIMEOUT)

    async def sync(self, report: SyncReport) -> Reply:
        """Say where the replica stands, hear what to do. Raises Away, Refused or FenceLost."""
        try:
            response = await self._http.post(self._sync_path, json=report)
        except httpx.HTTPError as error:
            raise Away(type(error).__name__) from None
        _check(response)
        try:
            return Reply.model_validate_json(response.content)
        except ValidationError as error:
            raise Away(f"the answer is not understood: {error.error_count()} fields are wrong") from None

    async def read(self, order: Order, file: AdapterFile) -> AsyncIterator[bytes]:
        """One file of an adapter. Raises Away, Refused or FenceLost."""
        try:
            async with self._http.stream("GET", f"{order.url}/{file}", timeout=_FILE_TIMEOUT) as response:
                if not response.is_success:
                    await response.aread()
                _check(response)
                async for chunk in response.aiter_bytes():
                    yield chunk
        except httpx.HTTPError as error:
            raise Away(type(error).__name__) from None

    async def close(self) -> None:
        """Let go of its connections."""
        await self._http.aclose()


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    status = response.status_code
    if status >= 500 or status in (408, 425, 429):
        raise Away(f"HTTP {status}")
    try:
        code = str(response.json()["code"])
    except (ValueError, KeyError, TypeError):
        code = "unknown"
    if code == "fence_lost":
        raise FenceLost(f"{code}, HTTP {status}")
    raise Refused(f"{code}, HTTP {status}")
