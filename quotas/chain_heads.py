"""Chains of sealed blocks: heads are kept in a file, so who rewrites the database would have to rewrite that too."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from quotas.ledger_checks import GENESIS, block_hash
from quotas.vocabulary import Finding


class SealedBlock(Protocol):
    """A run of rows that was sealed: all those of the transactions in [from_xid, until_xid)."""

    @property
    def number(self) -> int:
        """From 1 on, without gaps."""
        ...

    @property
    def from_xid(self) -> str:
        """Where the block before it ended."""
        ...

    @property
    def until_xid(self) -> str:
        """Where it ends."""
        ...

    @property
    def previous(self) -> bytes:
        """The hash of the block before it."""
        ...

    @property
    def hash(self) -> bytes:
        """Of `previous` and of its lines."""
        ...


B = TypeVar("B", bound=SealedBlock)


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What the proof of a chain found, of how many blocks, and how many of their heads were compared with the file."""

    findings: tuple[Finding, ...]
    blocks: int
    heads: int


async def check_chain(
    chain: Sequence[B], lines_of: Callable[[B], Awaitable[str]], heads: Path | None, *, what: str, of: str
) -> ChainReport:
    """Every block follows its predecessor, hashes to what it says, and has its head in the file, where one is kept.

    `what` names a block, `of` the place it is in. Heads of the newest blocks may be written a moment later.
    """
    kept = dict(await asyncio.to_thread(known_heads, heads))
    newest, compared = max(kept, default=0), 0
    findings: list[Finding] = []
    previous, upto = GENESIS, "0"
    for number, block in enumerate(chain, start=1):
        about, head = f"{what} {block.number}", kept.pop(block.number, None)
        if (block.number, block.previous, str(block.from_xid)) != (number, previous, upto):
            findings.append(Finding("chain", about, "it does not follow the block before it"))
        if block_hash(block.previous, [await lines_of(block)]) != block.hash:
            findings.append(Finding("chain", about, "its lines are not those that were sealed"))
        if head is not None:
            compared += 1
            if head != block.hash.hex():
                findings.append(Finding("chain", about, f"its head is not the one written in {heads}"))
        elif block.number < newest:
            findings.append(Finding("chain", about, f"its head is missing in {heads}"))
        previous, upto = block.hash, str(block.until_xid)
    findings += [Finding("chain", f"{what} {lost}", f"it is in {heads} and not in {of}") for lost in kept]
    if heads is not None and chain and not newest:
        findings.append(Finding("chain", of, f"no head of its {len(chain)} blocks is in {heads}: nothing to compare"))
    return ChainReport(tuple(findings), len(chain), compared)


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
