"""Keep the engine's adapters equal to what serving ordered: fetched, verified, loaded; the others unloaded.

Nothing reaches the engine unverified: the hash must be the adapter's identity, the weights a plain safetensors LoRA,
and the config is written anew from what was understood of the one that came.
"""

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from serving.adapter_files import CONFIG_BYTES_MAX, CONFIG_FILE, WEIGHTS_FILE, BadAdapter, check, header_bytes
from serving.node.control_client import Away, ControlClient, Order, Refused
from serving.node.engine_client import EngineClient, EngineRefused, EngineSilent

_RETRY_SECONDS = 2.0


class Adapters:
    """Which adapters are loading, loaded and failed on one engine."""

    def __init__(self, control: ControlClient, engine: EngineClient, *, base_model: str, folder: Path) -> None:
        self._control = control
        self._engine = engine
        self._base_model = base_model
        self._folder = folder
        self._loading: set[str] = set()
        self._loaded: set[str] = set()
        self._failed: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        self._turn = asyncio.Lock()

    @property
    def loading(self) -> list[str]:
        return sorted(self._loading)

    @property
    def loaded(self) -> list[str]:
        return sorted(self._loaded)

    @property
    def failed(self) -> dict[str, str]:
        """Adapter → why this engine will not have it."""
        return dict(self._failed)

    async def follow(self, orders: Iterable[Order]) -> None:
        """Do what is missing of `orders`, one adapter at a time, and end."""
        wanted = {order.id: order for order in orders}
        async with self._turn:
            for adapter_id in sorted(self._loaded - set(wanted)):
                await self._unload(adapter_id)
            for adapter_id, order in wanted.items():
                due = time.monotonic() >= self._retry_at.get(adapter_id, 0.0)
                if due and adapter_id not in self._loaded and adapter_id not in self._failed:
                    await self._load(order)

    async def _load(self, order: Order) -> None:
        self._loading.add(order.id)
        try:
            folder = await self._fetch(order)
            await self._engine.load(order.id, folder)
            self._loaded.add(order.id)
        except (BadAdapter, EngineRefused, Refused) as refusal:
            self._failed[order.id] = str(refusal)[:500]
        except (Away, EngineSilent, OSError):
            self._retry_at[order.id] = time.monotonic() + _RETRY_SECONDS
        finally:
            self._loading.discard(order.id)

    async def _unload(self, adapter_id: str) -> None:
        try:
            await self._engine.unload(adapter_id)
        except (EngineRefused, EngineSilent):
            return  # it is still loaded; the next turn tries again
        self._loaded.discard(adapter_id)
        shutil.rmtree(self._folder / adapter_id, ignore_errors=True)

    async def _fetch(self, order: Order) -> Path:
        """A folder that holds the two verified files. Raises BadAdapter, Away or Refused."""
        folder = self._folder / order.id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        config = bytearray()
        async for chunk in self._control.read(order, CONFIG_FILE):
            config += chunk
            if len(config) > CONFIG_BYTES_MAX:
                raise BadAdapter("the adapter's config is too large", code="adapter_too_large")
        weights = folder / WEIGHTS_FILE
        await self._fetch_weights(order, weights)
        checked = check(
            bytes(config), _head(weights, order.bytes), weights_bytes=order.bytes, base_model=self._base_model
        )
        (folder / CONFIG_FILE).write_text(json.dumps(dict(checked.config)), encoding="utf-8")
        return folder

    async def _fetch_weights(self, order: Order, target: Path) -> None:
        digest = hashlib.sha256()
        got = 0
        with target.open("wb") as file:
            async for chunk in self._control.read(order, WEIGHTS_FILE):
                got += len(chunk)
                if got > order.bytes:
                    break
                digest.update(chunk)
                file.write(chunk)
        if got < order.bytes:
            raise Away("the weights ended early")
        if got != order.bytes or digest.hexdigest() != order.sha256:
            raise BadAdapter("the weights do not have the hash that is the adapter's identity", code="adapter_hash")


def _head(weights: Path, total_bytes: int) -> bytes:
    with weights.open("rb") as file:
        first = file.read(8)
        return first + file.read(header_bytes(first, total_bytes=total_bytes))
