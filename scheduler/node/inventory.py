"""What a node has that lets work begin sooner: files in its cache, models on its disk and in its memory."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scheduler.node.cache import Cache
from scheduler.node.protocol import HELD_MODELS_MAX, MODEL_NAME, Inventory

_WARM_PART = 2
"""Of the machine's memory, the part that the pages of model files read lately are trusted to keep."""


@dataclass(frozen=True, slots=True)
class Read:
    """A model's weights and when a program of this node last read them."""

    model: str
    size: int
    at: float


def still_warm(reads: Sequence[Read], *, memory_bytes: int, booted_at: float) -> list[str]:
    """Models whose files the machine's page cache still has, by their size: the last read first, while they fit."""
    warm: list[str] = []
    left = memory_bytes // _WARM_PART
    for read in sorted(reads, key=lambda read: (-read.at, read.model)):
        left -= read.size
        if left < 0 or read.at < booted_at:
            break
        warm.append(read.model)
    return warm


class Stock:
    """The node's cache and its models' folder, as one worker sees them."""

    def __init__(self, cache: Cache, models: Path | None, marks: Path) -> None:
        self._cache = cache
        self._models = models
        self._marks = marks

    def mark_read(self, model: str | None) -> None:
        """A program is about to read this model's weights."""
        if model is not None and self._models is not None and (self._models / model).is_dir():
            self._marks.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self._marks / model).touch()

    def inventory(self, worker: int) -> Inventory:
        """What is here now."""
        models = self._on_disk()
        reads = [read for model in models if (read := self._read(model)) is not None]
        return Inventory(
            worker=worker,
            files=sorted(entry.name for entry in self._cache.entries()),
            models=models,
            warm=still_warm(reads, memory_bytes=_memory_bytes(), booted_at=_booted_at()),
        )

    def _on_disk(self) -> list[str]:
        if self._models is None or not self._models.is_dir():
            return []
        found = (path.parent.name for path in self._models.glob("*/config.json"))
        return sorted(name for name in found if MODEL_NAME.fullmatch(name))[:HELD_MODELS_MAX]

    def _read(self, model: str) -> Read | None:
        assert self._models is not None, "it is there"
        with suppress(FileNotFoundError):
            at = (self._marks / model).stat().st_mtime
            size = sum(file.stat().st_size for file in (self._models / model).iterdir() if file.is_file())
            return Read(model, size, at)
        return None


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _booted_at() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
