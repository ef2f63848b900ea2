"""From an engine's cache events to the gateways' prefix blocks. Pure.

An engine tells which of its blocks (a few tokens each) it stored and let go; gateways know prompts as chains of hashed
blocks of text. Each request says which prefix blocks its prompt is made of, and its blocks in the engine are laid over
them in proportion: a prefix block is held while every engine block under it is. Tokens are not looked at.
"""

import json
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

REQUESTS_MAX = 2_048
"""Prompts remembered until the engine has stored them."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's prompt: its full prefix blocks, how many there would be if the last were cut short, its tokens."""

    prefixes: Sequence[int]
    blocks: float
    tokens: int


@dataclass(slots=True)
class Change:
    """What gateways are told. `left`: how many of a request's prompt tokens are still to be computed.

    Nothing is both stored and removed; `cleared` (all that was known is void) comes before either.
    """

    stored: dict[int, None] = field(default_factory=dict[int, None])
    removed: dict[int, None] = field(default_factory=dict[int, None])
    left: dict[str, int] = field(default_factory=dict[str, int])
    cleared: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.stored or self.removed or self.left or self.cleared)

    def line(self) -> bytes:
        """As gateways read it: a line of JSON."""
        told: dict[str, object] = {"cleared": self.cleared, "stored": [*self.stored], "removed": [*self.removed]}
        told["left"] = self.left
        said = {name: value for name, value in told.items() if value}
        return json.dumps(said, separators=(",", ":")).encode() + b"\n"


@dataclass(slots=True)
class _Block:
    """A block in the engine's cache. The engine does not merge equal blocks that two requests computed at once."""

    before: object
    place: int
    copies: int = 1
    prefix: int | None = None


class CacheMap:
    """The prefix blocks that one engine holds."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._blocks: dict[object, _Block] = {}
        self._under: dict[int, set[object]] = {}  # prefix block → engine blocks under it
        self._held: dict[int, None] = {}  # in the order they came
        self._change = Change()

    def expect(self, request: str, prompt: Prompt) -> None:
        """A request is on its way into the engine."""
        if prompt.blocks > 0 and prompt.tokens > 0:
            self._prompts[request] = prompt
            if len(self._prompts) > REQUESTS_MAX:
                self._prompts.popitem(last=False)

    def stored(self, request: str | None, blocks: Iterable[object], before: object, block_tokens: int) -> None:
        """The engine stored `blocks` in this order behind `before` (None: at the beginning), for this request."""
        behind = self._blocks.get(before)
        if before is not None and behind is None:
            return  # a chain whose beginning was never told of
        place = 0 if behind is None else behind.place + 1
        last = before
        for block in blocks:
            known = self._blocks.get(block)
            if known is not None:
                known.copies += 1
            else:
                self._blocks[block] = _Block(last, place)
            last, place = block, place + 1
        prompt = None if request is None else self._prompts.get(request)
        if prompt is None or request is None or last is before:
            return
        self._lay(prompt, last, block_tokens)
        left = 0 if place >= prompt.tokens // block_tokens else prompt.tokens - place * block_tokens
        if not left:
            del self._prompts[request]
        self._change.left[request] = left

    def removed(self, blocks: Iterable[object]) -> None:
        """The engine let these go."""
        for name in blocks:
            block = self._blocks.get(name)
            if block is None:
                continue
            block.copies -= 1
            if block.copies:
                continue
            del self._blocks[name]
            if block.prefix is not None:
                self._let_go(block.prefix)

    def cleared(self) -> None:
        """The engine's cache is empty, or events were missed: nothing is known any more."""
        self._blocks.clear()
        self._under.clear()
        self._held.clear()
        self._change = Change(left=self._change.left, cleared=True)

    def take(self) -> Change:
        """What changed since it was last asked."""
        change, self._change = self._change, Change()
        return change

    def all(self) -> Change:
        """What somebody needs to know who knew nothing."""
        return Change(stored=dict(self._held), cleared=True)

    def _lay(self, prompt: Prompt, last: object, block_tokens: int) -> None:
        """Walk the chain back from `last` and put its blocks under the prompt's prefix blocks."""
        tokens_each = prompt.tokens / prompt.blocks
        ends = [-int(-(number + 1) * tokens_each // block_tokens) - 1 for number in range(len(prompt.prefixes))]
        upto = self._blocks[last].place
        found: dict[int, None] = {}
        name: object = last
        while (block := self._blocks.get(name)) is not None:
            number = bisect_left(ends, block.place)
            if number < len(ends):
                prefix = prompt.prefixes[number]
                if block.prefix == prefix:
                    break  # from here on it was done for an earlier prompt
                self._put_under(name, block, prefix)
                if ends[number] <= upto:
                    found[prefix] = None
            name = block.before
        for prefix in reversed(found):
            if prefix not in self._held:
                self._held[prefix] = self._change.stored[prefix] = None
                self._change.removed.pop(prefix, None)

    def _put_under(self, name: object, block: _Block, prefix: int) -> None:
        if block.prefix is not None:
            others = self._under[block.prefix]
            others.discard(name)
            if not others:
                self._let_go(block.prefix)
        block.prefix = prefix
        self._under.setdefault(prefix, set()).add(name)

    def _let_go(self, prefix: int) -> None:
        for name in self._under.pop(prefix):
            block = self._blocks.get(name)
            if block is not None:
                block.prefix = None
        if prefix in self._held:
            del self._held[prefix]
            self._change.removed[prefix] = None
            self._change.stored.pop(prefix, None)
