"""A modelled inference engine in virtual time: chunked prefill first come first served, continuous batching, KV cache.

Stated model, not a measurement: 2,048 tokens a step and at most 256 sequences; a step takes 15 ms + prefilled tokens /
10,000 s + 0.1 ms for each decoding sequence + 3.5e-8 s for each KV token held; the cache is a reference-counted LRU of
blocks of 512 tokens, those of running sequences included.
"""

import heapq
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import TypeAlias

from benchmarks.routing.trace import BLOCK_TOKENS, Request

STEP_TOKENS = 2_048
SEQUENCES_MAX = 256
STEP_SECONDS, PREFILL_TOKENS_PER_SECOND = 0.015, 10_000
DECODE_SECONDS, KV_TOKEN_SECONDS = 1e-4, 3.5e-8


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks of a request's prompt are in the cache, behind the block `before`; vLLM says so of each chunk computed."""

    sequence: "Sequence"
    blocks: tuple[int, ...]
    before: int | None


@dataclass(frozen=True, slots=True)
class Removed:
    """A block is no longer in the cache; once for each time that it was stored, as vLLM keeps equal blocks apart."""

    block: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A request's first token is out; its whole answer, where `whole`."""

    sequence: "Sequence"
    whole: bool


Event: TypeAlias = Stored | Removed | Answered


@dataclass(slots=True)
class Sequence:
    """A request on a replica: `uncached` tokens of its prompt are to be prefilled, `told` blocks are announced."""

    number: int
    request: Request
    uncached: int
    hit_tokens: int = 0
    told: int = 0
    first_token_at: float = 0.0

    @property
    def output_blocks(self) -> int:
        """Blocks its answer fills."""
        return -(-self.request.output_tokens // BLOCK_TOKENS)


@dataclass(slots=True)
class Replica:
    """One engine. `queued_tokens`: uncached prompt tokens it has been sent and not yet prefilled."""

    id: str
    blocks: int
    queued_tokens: int = 0
    requests: int = 0
    decoding: int = 0
    kv_tokens: int = 0
    step: int = 0
    is_busy: bool = False
    events: list[Event] = field(default_factory=list[Event])
    _referenced: dict[int, int] = field(default_factory=dict[int, int])
    _idle: OrderedDict[int, None] = field(default_factory=OrderedDict[int, None])
    _stored: Counter[int] = field(default_factory=Counter[int])
    _output_blocks: int = 0
    _queue: deque[Sequence] = field(default_factory=deque[Sequence])
    _prefilling: deque[Sequence] = field(default_factory=deque[Sequence])
    _prefilled: list[Sequence] = field(default_factory=list[Sequence])
    _advanced: list[Sequence] = field(default_factory=list[Sequence])
    _chunk: int = 0
    _ends: list[tuple[int, int, Sequence]] = field(default_factory=list[tuple[int, int, Sequence]])

    def matched_blocks(self, blocks: tuple[int, ...]) -> int:
        """How many leading blocks of a prompt the cache holds."""
        count = 0
        for block in blocks:
            if block not in self._referenced and block not in self._idle:
                break
            count += 1
        return count

    def uncached_tokens(self, request: Request) -> int:
        """Prompt tokens it would have to prefill now; the last token is always computed."""
        return request.prompt_tokens - min(
            self.matched_blocks(request.blocks) * BLOCK_TOKENS,
            request.prompt_tokens - 1,
        )

    def send(self, sequence: Sequence) -> None:
        """Queue a request."""
        sequence.uncached = self.uncached_tokens(sequence.request)
        self.queued_tokens += sequence.uncached
        self.requests += 1
        self._queue.append(sequence)

    def begin_step(self, now: float) -> float | None:
        """Start a step and return when it ends; None when there is nothing to do."""
        self._admit()
        self.is_busy = bool(self._prefilling or self.decoding)
        if not self.is_busy:
            return None
        budget = STEP_TOKENS - self.decoding
        self._chunk, self._prefilled, self._advanced = 0, [], []
        while self._prefilling and budget > 0:
            head = self._prefilling[0]
            tokens = min(head.uncached, budget)
            head.uncached -= tokens
            budget -= tokens
            self._chunk += tokens
            self._advanced.append(head)
            if head.uncached:
                break
            self._prefilled.append(self._prefilling.popleft())
        self.step += 1
        return (
            now
            + STEP_SECONDS
            + self._chunk / PREFILL_TOKENS_PER_SECOND
            + DECODE_SECONDS * self.decoding
            + KV_TOKEN_SECONDS * self.kv_tokens
        )

    def end_step(self, now: float) -> None:
        """Every decoding sequence has one token more; prefilled ones have their first."""
        self.queued_tokens -= self._chunk
        self.kv_tokens += self.decoding
        for sequence in self._advanced:
            self._tell(sequence)
        while self._ends and self._ends[0][0] <= self.step:
            self._finish(heapq.heappop(self._ends)[2])
        for sequence in self._prefilled:
            sequence.first_token_at = now
            self.events.append(Answered(sequence, whole=False))
            self.decoding += 1
            heapq.heappush(
                self._ends,
                (
                    self.step + sequence.request.output_tokens - 1,
                    sequence.number,
                    sequence,
                ),
            )

    def _admit(self) -> None:
        """Take from the queue while the batch has a place and the cache has room for prompt and answer."""
        while self._queue and len(self._prefilling) + self.decoding < SEQUENCES_MAX:
            sequence = self._queue[0]
            prompt = sequence.request.blocks
            matched = self.matched_blocks(prompt)
            revived = sum(1 for block in prompt[:matched] if block in self._idle)
            needed = len(prompt) - matched + sequence.output_blocks + revived
            room = self.blocks - len(self._referenced) - self._output_blocks
            if needed > room and (self._prefilling or self.decoding):
                return
            self._queue.popleft()
            self._take(sequence, matched)
            self._prefilling.append(sequence)

    def _take(self, sequence: Sequence, matched: int) -> None:
        request = sequence.request
        for block in request.blocks:
            self._idle.pop(block, None)
            self._referenced[block] = self._referenced.get(block, 0) + 1
        self._output_blocks += sequence.output_blocks
        while self._idle and len(self._idle) + len(self._referenced) + self._output_blocks > self.blocks:
            block, _ = self._idle.popitem(last=False)
            self.events += [Removed(block)] * self._stored.pop(block, 0)
        sequence.told = matched
        believed = sequence.uncached
        sequence.hit_tokens = min(matched * BLOCK_TOKENS, request.prompt_tokens - 1)
        sequence.uncached = request.prompt_tokens - sequence.hit_tokens
        self.queued_tokens += sequence.uncached - believed
        self.kv_tokens += request.prompt_tokens

    def _tell(self, sequence: Sequence) -> None:
        """Announce the blocks that the last chunk filled; the prompt's last block counts though it is not full."""
        request = sequence.request
        filled = (request.prompt_tokens - sequence.uncached) // BLOCK_TOKENS if sequence.uncached else None
        blocks = request.blocks[sequence.told : filled]
        if blocks:
            before = request.blocks[sequence.told - 1] if sequence.told else None
            self.events.append(Stored(sequence, blocks, before))
            self._stored.update(blocks)
            sequence.told += len(blocks)

    def _finish(self, sequence: Sequence) -> None:
        request = sequence.request
        self.events.append(Answered(sequence, whole=True))
        self.decoding -= 1
        self.requests -= 1
        self.kv_tokens -= request.prompt_tokens + request.output_tokens
        self._output_blocks -= sequence.output_blocks
        for block in reversed(request.blocks):
            references = self._referenced[block] - 1
            if references:
                self._referenced[block] = references
            else:
                del self._referenced[block]
                self._idle[block] = None
