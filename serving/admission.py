"""What a request may cost at most, and whether the firm's leased allowance covers it.

The bound on the prompt is a true one: byte-level tokenizers make at most one token of a byte, what a chat template
adds around a message is less than the JSON around it, and both are capped by the model's context. How many tokens an
image makes is the model's affair: with an image the context itself is the bound.
"""

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

TOKENS_PER_REQUEST_MAX = 256
"""What a chat template may add around a conversation: a default system prompt, begin and generation marks."""
TOKENS_FOR_TOOLS_MAX = 1_024
"""What it may add where there are tools: how to call them."""
BYTES_PER_TOOL_MAX = 160
"""Fields with their defaults that an engine adds to each tool before its template prints it."""
INDENT = 4
PER_MILLION = 1_000_000
_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[{}\[\]]")


class Shape(NamedTuple):
    """The size of a request, as far as its body tells: `choices` answers to `prompts` prompts."""

    body_bytes: int
    images: int = 0
    tools_bytes: int = 0  # what a template may make of its tools (`printed_tools_bytes_max`)
    prompts: int = 1
    choices: int = 1
    output_tokens_max: int | None = None  # of each choice; None: as much as the context holds
    shared_bytes: int = 0  # of the body, what goes into every prompt: the query beside each document


class Rate(NamedTuple):
    """Micro-yuan per million tokens."""

    input: int
    cached_input: int
    output: int


FREE = Rate(0, 0, 0)


class Reserve(NamedTuple):
    """The most a request can use: tokens counted against windows, micro-yuan held from the allowance."""

    tokens: int
    micro_yuan: int


def prompt_tokens_max(shape: Shape, context_tokens: int) -> int:
    """An upper bound of the prompt's tokens over all prompts of the request."""
    prompts = shape.prompts
    most = context_tokens * prompts
    if shape.images:
        return most
    bound = shape.body_bytes + TOKENS_PER_REQUEST_MAX * prompts + shape.shared_bytes * (prompts - 1)
    if shape.tools_bytes:
        bound += shape.body_bytes + shape.tools_bytes + TOKENS_FOR_TOOLS_MAX  # calls in messages may be printed wider
    return min(bound, most)


def printed_tools_bytes_max(tools: bytes) -> int:
    """The most bytes that a list of tools (as JSON) takes when a template prints it with an indent, line by line."""
    bare = _JSON_STRING.sub(b'""', tools)
    steps = (1 if bracket in b"{[" else -1 for bracket in _BRACKETS.findall(bare))
    deepest = max(accumulate(steps), default=0)
    items = bare.count(b",") + 2 * (bare.count(b"{") + bare.count(b"["))
    lines = items * (1 + INDENT * deepest) + bare.count(b":")
    return len(tools) + lines + BYTES_PER_TOOL_MAX * bare.count(b"{")


def reserve(shape: Shape, rate: Rate, context_tokens: int) -> Reserve:
    """The most that `shape` can use of a model with this context, at this rate.

    Prompt and output share the context, so the dearest split is at one of the two ends.
    """
    prompts = shape.prompts
    answers = prompts * shape.choices
    prompt = prompt_tokens_max(shape, context_tokens)
    wanted = shape.output_tokens_max
    if wanted is None or wanted > context_tokens:
        wanted = context_tokens
    full_output = answers * wanted
    if prompt <= prompts * (context_tokens - wanted):  # both fit at once: the two ends are the same
        return Reserve(prompt + full_output, cost(rate, input=prompt, cached_input=0, output=full_output))
    short_output = answers * max(0, min(wanted, context_tokens - prompt // prompts))
    short_prompt = min(prompt, prompts * max(1, context_tokens - wanted))
    return Reserve(
        tokens=max(prompt + short_output, short_prompt + full_output),
        micro_yuan=max(
            cost(rate, input=prompt, cached_input=0, output=short_output),
            cost(rate, input=short_prompt, cached_input=0, output=full_output),
        ),
    )


def cost(rate: Rate, *, input: int, cached_input: int, output: int) -> int:
    """Micro-yuan of this usage, rounded up so that a hold is never smaller than the charge.

    `input` counts all prompt tokens, `cached_input` those of them that were cached.
    """
    dearest = rate.cached_input if cached_input == 0 and rate.cached_input > rate.input else rate.input
    numerator = (input - cached_input) * dearest + cached_input * rate.cached_input + output * rate.output
    return -(-numerator // PER_MILLION)


@dataclass(slots=True)
class Lease:
    """A slice of a payer's money in this gateway's hands, and of its tokens where a month's limit is over them.

    `left` = leased − settled here; `held` of it is reserved. `owed` is settled here and not yet taken by the ledger, so
    the ledger still counts it as left. The same of `tokens_left`, `tokens_held` and `tokens_owed`.
    """

    id: str
    payer: str
    left: int
    expires_ms: int
    held: int = 0
    owed: int = 0
    recalled: bool = False
    tokens_left: int = 0
    tokens_held: int = 0
    tokens_owed: int = 0

    @property
    def free(self) -> int:
        """What money may still be reserved."""
        return self.left - self.held

    @property
    def tokens_free(self) -> int:
        """How many tokens may still be reserved."""
        return self.tokens_left - self.tokens_held

    @property
    def bound(self) -> int:
        """What the ledger must keep in this lease: reserved, or used and not yet shipped."""
        return self.held + self.owed

    @property
    def tokens_bound(self) -> int:
        """The same of tokens."""
        return self.tokens_held + self.tokens_owed

    def set_aside(self) -> tuple[int, int]:
        """Take out of it what is free, money and tokens; returns how much."""
        money, tokens = self.free, self.tokens_free
        self.left -= money
        self.tokens_left -= tokens
        return money, tokens

    @property
    def in_use(self) -> bool:
        """Whether any request has reserved something of it."""
        return bool(self.held or self.tokens_held)


@dataclass(slots=True)
class Hold:
    """Money reserved for one request, from one lease; tokens too where a month's limit counts them."""

    lease: Lease | None  # None: nothing to pay or count, so nothing held
    amount: int
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class TopUp:
    """The lease does not cover the request: so much more must be leased, or the request is refused."""

    missing: int
    tokens: int = 0


def hold(lease: Lease | None, amount: int, *, tokens: int = 0, now_ms: int, margin_ms: int = 0) -> Hold | TopUp:
    """Reserve `amount` from a lease that lives for another `margin_ms`, or say what is missing.

    `tokens` are reserved with it where a month's limit counts them; 0 where none does.
    """
    if amount == 0 and tokens == 0:
        return Hold(None, 0)
    if lease is None or lease.expires_ms <= now_ms + margin_ms:
        return TopUp(amount, tokens)
    if lease.free < amount or lease.tokens_free < tokens:
        return TopUp(max(0, amount - lease.free), max(0, tokens - lease.tokens_free))
    lease.held += amount
    lease.tokens_held += tokens
    return Hold(lease, amount, tokens)


def settle(held: Hold, used: int, *, tokens: int = 0) -> int:
    """Turn a hold into a charge of `used` micro-yuan; what was held above it is free again.

    Returns how many of the `tokens` used are now owed to a month's limit: none where none was reserved.
    """
    lease = held.lease
    if lease is None:
        return 0
    assert 0 <= held.amount <= lease.held, "a hold resolves once"
    counted = tokens if held.tokens else 0
    lease.held -= held.amount
    lease.left -= used
    lease.owed += used
    lease.tokens_held -= held.tokens
    lease.tokens_left -= counted
    lease.tokens_owed += counted
    held.lease, held.amount, held.tokens = None, 0, 0
    return counted


def shipped(lease: Lease, used: int, *, tokens: int = 0) -> None:
    """The ledger has taken a charge of `used`, and counts its tokens."""
    lease.owed -= used
    lease.tokens_owed -= tokens
