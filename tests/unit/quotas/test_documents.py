"""Which files are documents, whatever they are called."""

import pytest

from kit.errors import InvalidInput, Refused
from quotas.documents import DOCUMENTS_MAX, file_name_of, media_type_of, refuse_one_too_many


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (b"%PDF-1.7\n", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n\x00", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
    ],
)
def test_the_first_bytes_say_what_a_file_is(head: bytes, media_type: str) -> None:
    assert media_type_of(head) == media_type


@pytest.mark.parametrize(
    "head", [b"", b"%PDF", b"MZ\x90", b"<html>", b"\x89PNG\n", b" %PDF-1.7", b"GIF89a", b"PK\x03\x04"]
)
def test_what_is_no_document_is_refused(head: bytes) -> None:
    with pytest.raises(InvalidInput):
        media_type_of(head)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("营业执照.pdf", "营业执照.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\scans\\a.png", "a.png"),
        (" b.jpg ", "b.jpg"),
    ],
)
def test_a_name_is_kept_without_its_folders(name: str, kept: str) -> None:
    assert file_name_of(name) == kept


@pytest.mark.parametrize("name", ["", "..", "a/", "x" * 121, "a\nb.pdf", "a\x00.pdf"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="printable"):
        file_name_of(name)


def test_the_next_document_is_refused_when_there_are_enough() -> None:
    refuse_one_too_many(DOCUMENTS_MAX - 1)
    with pytest.raises(Refused, match=str(DOCUMENTS_MAX)):
        refuse_one_too_many(DOCUMENTS_MAX)
