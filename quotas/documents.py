"""What may be uploaded with an application: which files, how large, how many, and under which name. Pure.

A file's type is what its first bytes say, never what its name or the sender claims.
"""

from enum import StrEnum

from kit.errors import InvalidInput, Refused

BYTES_MAX = 10 << 20
DOCUMENTS_MAX = 20
NAME_MAX = 120
_MAGIC = {b"%PDF-": "application/pdf", b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
HEAD_BYTES = max(len(magic) for magic in _MAGIC)


class DocumentKind(StrEnum):
    """What a document proves."""

    BUSINESS_LICENCE = "business_licence"
    REPRESENTATIVE = "representative"
    AUTHORISATION = "authorisation"
    OTHER = "other"


def media_type_of(head: bytes) -> str:
    """The type of a file by its first bytes. Raises InvalidInput for what is no document."""
    if not head:
        raise InvalidInput("the document is empty", code="document_empty", hint="send the file as the body")
    for magic, media_type in _MAGIC.items():
        if head.startswith(magic):
            return media_type
    raise InvalidInput(
        "the document is none that can be read here", code="document_type", hint="send a PDF, a PNG or a JPEG"
    )


def file_name_of(name: str) -> str:
    """A name without folders. Raises InvalidInput for one that is empty, too long or not printable."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1].strip()
    if last in ("", ".", "..") or len(last) > NAME_MAX or not last.isprintable():
        raise InvalidInput(
            f"a document's name has 1 to {NAME_MAX} printable characters", code="document_name", hint="rename the file"
        )
    return last


def refuse_one_too_many(known: int) -> None:
    """Raises Refused (`too_many_documents`)."""
    if known >= DOCUMENTS_MAX:
        raise Refused(
            f"the firm has {known} documents; {DOCUMENTS_MAX} are kept at most",
            code="too_many_documents",
            hint="put several pages into one PDF",
        )
