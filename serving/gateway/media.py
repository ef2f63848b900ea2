"""Images (and sounds, and films) inside a request: found, counted, bounded; remote images brought in as data.

The engine never sees an address: an image's is fetched (`images.py`) and replaced by what was there. What an address
may not stand for is refused where it stands.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from serving.gateway.openai_errors import Refusal

IMAGES_MAX = 32
_DATA = re.compile(r"data:([a-z]+/[a-z0-9.+-]+)[;,]", re.IGNORECASE)
_REMOTE = re.compile(r"^\s*(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_MEDIA_KEYS = re.compile(r"(url|uri|image|audio|video|file|source|data)$", re.IGNORECASE)
_SIGNATURES = (
    ("image/png", b"\x89PNG\r\n\x1a\n", b""),
    ("image/jpeg", b"\xff\xd8\xff", b""),
    ("image/gif", b"GIF8", b""),
    ("image/webp", b"RIFF", b"WEBP"),
)
IMAGE_TYPES = tuple(name for name, _, _ in _SIGNATURES)
IMAGE_NAMES = ", ".join(name.partition("/")[2].upper() for name in IMAGE_TYPES)


class Media(NamedTuple):
    """What a request brings: how many they are, how many bytes of it, and the images to be fetched."""

    number: int = 0
    bytes: int = 0
    remote: tuple[str, ...] = ()

    def __add__(self, other: object) -> "Media":  # pyright: ignore[reportIncompatibleMethodOverride]
        assert isinstance(other, Media)
        return Media(self.number + other.number, self.bytes + other.bytes, self.remote + other.remote)


NO_MEDIA = Media()


def scan(value: Any, where: str) -> Media | Refusal:
    """The media in a decoded value. A Refusal names what cannot be taken."""
    count = size = 0
    remote: list[str] = []
    pending: list[tuple[str, Any]] = [(where, value)]
    while pending:
        key, value = pending.pop()
        address = _image_address(value)
        if address is not None and address[:5].lower() != "data:":
            if not address.startswith(("https://", "http://")):
                return _not_fetched(where)
            count += 1
            remote.append(address)
        elif isinstance(value, dict):
            pending.extend(value.items())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        elif isinstance(value, list):
            pending.extend((key, item) for item in value)  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(value, str) and _MEDIA_KEYS.search(key):
            if _REMOTE.match(value[:64]):
                return _not_fetched(where)
            kind = _DATA.match(value[:64])
            if kind is not None and kind[1].startswith("image/") and kind[1].lower() not in IMAGE_TYPES:
                return Refusal(400, "image_type", f"an image is one of {IMAGE_NAMES}, not {kind[1]}", where)
            count += 1
            size += len(value)
    if count > IMAGES_MAX:
        return Refusal(400, "too_many_images", f"a request brings at most {IMAGES_MAX} images", where)
    return Media(count, size, tuple(remote))


def _not_fetched(where: str) -> Refusal:
    why = "send media as data: URLs; only images are fetched, from https:// addresses"
    return Refusal(400, "remote_media_not_accepted", why, where)


def _image_address(value: Any) -> str | None:
    """The address of an image part: of chat, of responses, of messages."""
    if not isinstance(value, dict):
        return None
    match value.get("type"), value:  # pyright: ignore[reportUnknownMemberType]
        case "image_url", {"image_url": {"url": str(url)} | str(url)}:
            return url
        case "input_image", {"image_url": str(url)}:
            return url
        case "image", {"source": {"type": "url", "url": str(url)}}:
            return url
        case _:
            return None


def with_images(value: Any, images: Mapping[str, str]) -> Any:
    """`value` with the address of every image part replaced by its data URL."""
    if isinstance(value, list):
        return [with_images(item, images) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, dict):
        return value
    data = images.get(_image_address(value) or "")
    if data is None:
        return {key: with_images(item, images) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    part: dict[str, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType]
    if "source" in part:
        kind, _, content = data.removeprefix("data:").partition(";base64,")
        return part | {"source": {"type": "base64", "media_type": kind, "data": content}}
    inner = part["image_url"]
    return part | {"image_url": {**inner, "url": data} if isinstance(inner, dict) else data}


def image_type(content: bytes) -> str | None:
    """What the content itself says it is; None for anything that is not taken."""
    for name, start, eighth in _SIGNATURES:
        if content.startswith(start) and content[8:].startswith(eighth):
            return name
    return None
