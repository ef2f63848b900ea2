"""Heads of sealed blocks, kept in a file: who rewrites the database would have to rewrite the file too."""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path


def last_head(path: Path) -> int:
    """Number of the last head that was written whole, 0 without any; a torn last line is cut off."""
    if not path.exists():
        return 0
    so_far = path.read_text()
    whole = so_far[: so_far.rfind("\n") + 1]
    if whole != so_far:
        path.write_text(whole)
    written = whole.splitlines()
    return int(json.loads(written[-1])["number"]) if written else 0


def append_heads(path: Path, heads: Iterable[tuple[int, bytes, datetime]]) -> None:
    """Write (number, hash, sealed at) of blocks, durably."""
    lines = [
        json.dumps({"number": number, "hash": digest.hex(), "sealed_at": sealed_at.isoformat()}) + "\n"
        for number, digest, sealed_at in heads
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(lines))
        file.flush()
        os.fsync(file.fileno())


def known_heads(path: Path | None) -> Mapping[int, str]:
    """Number → hash in hexadecimal of every head in the file; none without a file."""
    if path is None or not path.exists():
        return {}
    heads = (json.loads(line) for line in path.read_text().splitlines() if line.strip())
    return {int(head["number"]): str(head["hash"]) for head in heads}
