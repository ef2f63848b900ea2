"""Which replica holds which prefix: prompts as chains of hashed blocks, remembered per replica, bounded in memory.

A block's hash covers everything before it, so equal hashes mean equal prefixes and a flat set is a trie. Where the
engine publishes cache events the index repeats them (`stored`, `removed`) and is exact; elsewhere it is a shadow: what
was sent to a replica (`sent`) is believed to be there until as many newer blocks have followed as the replica can hold.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

BYTES_PER_TOKEN = 4
"""What a token of a prompt's JSON weighs, for routing; money and limits use a true bound."""
BLOCK_BYTES = 1024
"""Bytes of prompt text to a block where tokens are not known: some 250 tokens of English."""


def prompt_blocks(salt: bytes, prompt: bytes, *, block_bytes: int = BLOCK_BYTES, limit: int = 512) -> list[int]:
    """Hashes of the prompt's full blocks, at most `limit`. Equal prompts of two salts (two firms) share none."""
    blocks: list[int] = []
    before = salt
    for start in range(0, min(len(prompt) // block_bytes, limit) * block_bytes, block_bytes):
        before = blake2b(prompt[start : start + block_bytes], digest_size=8, key=before[:64]).digest()
        blocks.append(int.from_bytes(before, "little"))
    return blocks


@dataclass(slots=True)
class PrefixIndex:
    """Blocks believed to be in each replica's cache, least recently used first, at most `capacity` a replica.

    A replica whose events are not heard is `bound` to what its cache can hold: that is all there is to go by.
    """

    capacity: int
    _held: dict[str, OrderedDict[int, None]] = field(default_factory=dict[str, OrderedDict[int, None]])
    _bounds: dict[str, int] = field(default_factory=dict[str, int])

    def bound(self, replica: str, blocks: int | None) -> None:
        """Believe in at most so many blocks there; None where the engine itself says what it lets go."""
        if blocks is None:
            self._bounds.pop(replica, None)
        else:
            self._bounds[replica] = blocks

    def matched(self, blocks: Sequence[int]) -> dict[str, int]:
        """Replica → how many of the first `blocks` it holds without a gap; replicas that hold none are left out."""
        found: dict[str, int] = {}
        for replica, held in self._held.items():
            count = 0
            for block in blocks:
                if block not in held:
                    break
                count += 1
            if count:
                found[replica] = count
        return found

    def sent(self, replica: str, blocks: Sequence[int]) -> None:
        """A prompt went to the replica: its blocks are the most recently used there, the first of them last to go."""
        room = min(self.capacity, self._bounds.get(replica, self.capacity))
        held = self._held.setdefault(replica, OrderedDict())
        for block in reversed(blocks[:room]):
            held[block] = None
            held.move_to_end(block)
        while len(held) > room:
            held.popitem(last=False)

    def stored(self, replica: str, blocks: Iterable[int]) -> None:
        """The engine says that it now holds these."""
        held = self._held.setdefault(replica, OrderedDict())
        for block in blocks:
            held[block] = None
        while len(held) > self.capacity:
            held.popitem(last=False)

    def removed(self, replica: str, blocks: Iterable[int]) -> None:
        """The engine says that it let these go."""
        held = self._held.get(replica, OrderedDict())
        for block in blocks:
            held.pop(block, None)

    def forget(self, replica: str) -> None:
        """The replica is gone, or starts afresh."""
        self._held.pop(replica, None)
        self._bounds.pop(replica, None)

    def __len__(self) -> int:
        """Blocks remembered in all."""
        return sum(len(held) for held in self._held.values())
