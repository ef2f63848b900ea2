"""The lines of the usage log: `<crc32, 8 hex digits> <JSON>`.

A torn or foreign line, such as the last one of a killed gateway, is left out.
"""

import logging
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from serving.metering import Closed, Counted, Opened, Outcome, Record, Subject, Tokens

log = logging.getLogger(__name__)


class _Line(msgspec.Struct, array_like=True):
    """A line as it is read; `encode` writes it."""

    kind: str  # o(pened) | c(ounted) | e(nded)
    id: str
    tokens: Tokens
    subject: Subject | None = None
    outcome: Outcome | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Line)


def encode(record: Record) -> bytes:
    """One line of a segment."""
    if isinstance(record, Closed):
        subject, tokens, outcome = record
        payload = _encoder.encode(("e", subject.id, tokens, subject, outcome))
    elif isinstance(record, Opened):
        payload = _encoder.encode(("o", record.subject.id, record.tokens, record.subject))
    else:
        payload = _encoder.encode(("c", record.id, record.tokens))
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def decode(line: bytes) -> Record | None:
    """The record of a line without its line break; None for a torn or damaged line."""
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        read = _decoder.decode(line[9:])
        tokens = read.tokens
        if read.kind == "c" or read.subject is None:
            return Counted(read.id, tokens)
        if read.kind == "o":
            return Opened(read.subject, tokens)
        return None if read.outcome is None else Closed(read.subject, tokens, read.outcome)
    except (ValueError, msgspec.MsgspecError):  # an outcome that another version knows is damage too
        return None


def read_segment(path: Path) -> Iterator[Record]:
    """Every whole record of a segment."""
    return (record for _, record in read_lines(path))


def read_lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    """Every whole line of a segment, and its record."""
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"\0"):
                return  # the part of the segment that was never written
            record = decode(line.rstrip(b"\n")) if line.endswith(b"\n") else None
            if record is None:
                log.warning("a damaged line in the usage log is left out", extra={"segment": path.name})
            else:
                yield line, record
