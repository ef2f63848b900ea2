"""A node keeps what it fetched, within bounds, each firm for itself, and believes no file that has gone bad."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from scheduler.node.cache import WORTH_BYTES, Cache, Entry, surplus
from scheduler.node.protocol import held_as

KIB = 1 << 10


def entries(*of: tuple[str, int, float]) -> list[Entry]:
    return [Entry(*one) for one in of]


@pytest.mark.parametrize(
    ("here", "bytes_max", "files_max", "goes"),
    [
        (entries(("a", 4, 1), ("b", 4, 2)), 8, 2, ""),
        (entries(("a", 4, 1), ("b", 4, 2)), 7, 2, "a"),
        (entries(("a", 4, 2), ("b", 4, 1)), 7, 2, "b"),
        (entries(("a", 1, 1), ("b", 1, 2), ("c", 1, 3)), 9, 1, "ab"),
        (entries(("b", 1, 1), ("a", 1, 1)), 1, 9, "a"),
        (entries(("a", 4, 1)), 0, 9, "a"),
    ],
)
def test_beyond_the_bounds_the_longest_unused_go(here: list[Entry], bytes_max: int, files_max: int, goes: str) -> None:
    assert "".join(entry.name for entry in surplus(here, bytes_max=bytes_max, files_max=files_max)) == goes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def a_file(folder: Path, content: bytes) -> tuple[str, Path]:
    path = folder.with_name("file")
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest(), path


def test_what_is_kept_is_copied_back_whole(folder: Path, tmp_path: Path) -> None:
    cache = Cache(folder, "firm_1", bytes_max=1 << 30)
    sha256, source = a_file(folder, b"x" * WORTH_BYTES)
    assert not cache.copy_to(sha256, tmp_path / "copy"), "it is not here yet"
    assert not (tmp_path / "copy").exists()
    cache.keep(sha256, source)
    source.write_bytes(b"the program changes what it was given")
    assert cache.copy_to(sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x" * WORTH_BYTES
    assert [entry.name for entry in cache.entries()] == [held_as("firm_1", sha256)]


def test_another_firm_does_not_find_it(folder: Path, tmp_path: Path) -> None:
    sha256, source = a_file(folder, b"x" * WORTH_BYTES)
    Cache(folder, "firm_1", bytes_max=1 << 30).keep(sha256, source)
    assert not Cache(folder, "firm_2", bytes_max=1 << 30).copy_to(sha256, tmp_path / "copy")


def test_a_file_that_has_gone_bad_is_dropped(folder: Path, tmp_path: Path) -> None:
    cache = Cache(folder, "firm_1", bytes_max=1 << 30)
    sha256, source = a_file(folder, b"x" * WORTH_BYTES)
    cache.keep(sha256, source)
    (folder / held_as("firm_1", sha256)).write_bytes(b"y" * WORTH_BYTES)
    assert not cache.copy_to(sha256, tmp_path / "copy")
    assert cache.entries() == [] and not (tmp_path / "copy").exists()


@pytest.mark.parametrize(("size", "kept"), [(WORTH_BYTES - 1, 0), (WORTH_BYTES, 1), (256 * KIB, 1), (256 * KIB + 1, 0)])
def test_what_is_not_worth_it_or_too_large_is_not_kept(folder: Path, size: int, kept: int) -> None:
    cache = Cache(folder, "firm_1", bytes_max=1 << 20)
    cache.keep(*a_file(folder, b"x" * size))
    assert len(cache.entries()) == kept


def test_use_keeps_a_file_and_the_bound_holds(folder: Path, tmp_path: Path) -> None:
    cache = Cache(folder, "firm_1", bytes_max=1 << 20)
    names: list[str] = []
    for i in range(4):
        sha256, source = a_file(folder, bytes([i]) * (256 * KIB))
        cache.keep(sha256, source)
        os.utime(folder / held_as("firm_1", sha256), (i, i))
        names.append(sha256)
    assert cache.copy_to(names[0], tmp_path / "copy"), "used just now"
    cache.keep(*a_file(folder, b"new" * 80 * KIB))
    assert sum(entry.size for entry in cache.entries()) <= 1 << 20
    assert not cache.copy_to(names[1], tmp_path / "copy") and cache.copy_to(names[0], tmp_path / "copy")


def test_running_work_gets_the_disk_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(folder, "firm_1", bytes_max=1 << 20)
    for i in range(2):
        sha256, source = a_file(folder, bytes([i]) * (128 * KIB))
        cache.keep(sha256, source)
        os.utime(folder / held_as("firm_1", sha256), (i, i))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 100 * KIB))  # type: ignore[attr-defined]
    cache.make_room(100 * KIB)
    assert len(cache.entries()) == 2, "there is as much as is needed"
    cache.make_room(101 * KIB)
    assert [entry.used_at for entry in cache.entries()] == [1]
    cache.make_room(1 << 30)
    assert cache.entries() == []
