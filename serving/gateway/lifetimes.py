"""What clients are told about a model's end: `Deprecation` (RFC 9745) and `Sunset` (RFC 8594) headers."""

from email.utils import format_datetime

from serving.vocabulary import ModelRoute


def notices(model: ModelRoute) -> bytes:
    """Header lines for every answer of this model; empty while its end is not set."""
    lines = b""
    if model.deprecated_at is not None:
        lines += b"deprecation: @%d\r\n" % int(model.deprecated_at.timestamp())
    if model.retires_at is not None:
        lines += b"sunset: %s\r\n" % format_datetime(model.retires_at, usegmt=True).encode()
    return lines


def retires_ms(model: ModelRoute) -> int:
    """When the model ends, in wall-clock milliseconds; 0 for never."""
    return 0 if model.retires_at is None else int(model.retires_at.timestamp() * 1_000)
