"""Objects by path, in a folder or (by URL, untested) an S3 bucket: written whole, hashed, never seen half-done."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import obstore
from obstore.store import from_url

from kit.auth import sign, signature_holds
from kit.errors import Forbidden, InvalidInput, NotFound, TooLarge
from kit.ids import new_id

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """What was written: its path, its size in bytes and its SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


class Blobs:
    """An object store. Paths are made by the caller from ids, never from what a user typed."""

    def __init__(self, url: str) -> None:
        if url.startswith("file://"):
            Path(url.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
            self._store: Any = from_url(url, mkdir=True)
        else:
            self._store = from_url(url)

    async def put(
        self, path: str, chunks: AsyncIterator[bytes], *, limit_bytes: int, sha256: str | None = None
    ) -> Stored:
        """Write a stream. Raises TooLarge past `limit_bytes`, InvalidInput when it does not hash to `sha256`.

        After an error nothing stands at `path` that was not there before.
        """
        digest, size, draft = hashlib.sha256(), 0, f"{path}.{new_id('put')}.part"  # two writers of one path: two drafts
        try:
            async with obstore.open_writer_async(self._store, draft, buffer_size=CHUNK_BYTES * 8) as writer:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > limit_bytes:
                        raise TooLarge(f"the object is larger than {limit_bytes} bytes", hint="send a smaller one")
                    digest.update(chunk)
                    await writer.write(chunk)
            if sha256 is not None and digest.hexdigest() != sha256.lower():
                raise InvalidInput(f"what arrived has SHA-256 {digest.hexdigest()}, not {sha256}", hint="send it again")
            await obstore.rename_async(self._store, draft, path)
        except BaseException:
            await self.delete(draft)
            raise
        return Stored(path, size, digest.hexdigest())

    async def read(self, path: str, *, start: int = 0) -> AsyncIterator[bytes]:
        """Its bytes from `start` on, in chunks. Raises NotFound."""
        try:
            options: Any = {"range": {"offset": start}} if start else None
            result = await obstore.get_async(self._store, path, options=options)
        except FileNotFoundError:
            raise NotFound("there is no such object") from None
        async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
            yield bytes(chunk)

    async def read_bytes(self, path: str, *, limit_bytes: int = 16 << 20) -> bytes:
        """The whole of a small object. Raises NotFound, and TooLarge past `limit_bytes`."""
        if await self.size(path) > limit_bytes:
            raise TooLarge(f"the object is larger than {limit_bytes} bytes", hint="read it as a stream")
        return b"".join([chunk async for chunk in self.read(path)])

    async def size(self, path: str) -> int:
        """Its size in bytes. Raises NotFound."""
        try:
            return int((await obstore.head_async(self._store, path))["size"])
        except FileNotFoundError:
            raise NotFound("there is no such object") from None

    async def delete(self, path: str) -> None:
        """Remove it; no object: no effect."""
        try:
            await obstore.delete_async(self._store, path)
        except FileNotFoundError:
            return


def signed_query(key: bytes, subject: str, *, until: datetime) -> str:
    """Query string that lets its bearer read `subject` until then: `expires=…&signature=…`."""
    expires = int(until.timestamp())
    return f"expires={expires}&signature={sign(key, f'{subject}:{expires}')}"


def check_signed(key: bytes, subject: str, *, expires: int, signature: str, now: datetime) -> None:
    """Raises Forbidden unless `signature` was made for `subject` and has not expired."""
    if not signature_holds(key, f"{subject}:{expires}", signature) or now.timestamp() >= expires:
        raise Forbidden("this link is not valid or has expired", code="link_expired", hint="ask for a new link")
