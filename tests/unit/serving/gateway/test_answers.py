"""A stream read the short way and event by event gives the client and the bill the same, whatever the text says."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.answers import EventStream, whole
from serving.gateway.endpoints import ENDPOINTS, Asked, decode
from serving.gateway.openai_errors import Refusal
from serving.metering import Tokens

TEXTS = st.lists(
    st.sampled_from(
        ["tok ", '"', "\\", ',"usage":{"completion_tokens":9}}', "\n\n", "\r\n", "data: {", '"choices":[]', "[DONE]",
         "合",
         '"model":"engine"', "}", "{", '"error":', "null"]
    ),
    max_size=4,
).map("".join)  # fmt: skip
EXTRA = st.sampled_from(
    [{}, {"logprobs": None}, {"logprobs": {"content": [{"token": "}", "logprob": -0.5}]}}, {"finish_reason": "stop"}]
)


def asked(options: dict[str, Any] | None) -> Asked:
    body = {"model": "mine", "messages": [], "stream": True, "stream_options": options}
    read = decode(ENDPOINTS[b"/v1/chat/completions"], json.dumps(body).encode(), b"")
    assert not isinstance(read, Refusal)
    return read


def stream_of(texts: list[str], extras: list[dict[str, Any]], *, ends: bool) -> bytes:
    """A stream as vLLM writes it."""
    base: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "engine"}
    events: list[dict[str, Any]] = [
        base | {"choices": [{"index": 0, "delta": {"content": text}, **extra}]}
        | {"usage": {"prompt_tokens": 7, "total_tokens": 8 + n, "completion_tokens": 1 + n}}
        for n, (text, extra) in enumerate(zip(texts, extras, strict=True))
    ]  # fmt: skip
    if ends:
        usage = {"prompt_tokens": 7, "completion_tokens": 99, "prompt_tokens_details": {"cached_tokens": 3}}
        events.append(base | {"choices": [], "usage": usage})
    lines = [json.dumps(e, separators=(",", ":"), ensure_ascii=False).encode() for e in events]
    return b"".join(b"data: %b\n\n" % line for line in lines) + (b"data: [DONE]\n\n" if ends else b"")


class LongWay(EventStream):
    """Decodes every event."""

    def _at_once(self, data: bytes) -> bytes | None:
        return None


def read(
    data: bytes, cuts: list[int], options: dict[str, Any] | None, *, short: bool
) -> tuple[list[Any], Tokens, bool]:
    stream = (EventStream if short else LongWay)(asked(options))
    out, at = b"", 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        out += stream.feed(data[at:cut])
        at = cut
    return [json.loads(event[6:]) for event in out.split(b"\n\n") if event], stream.usage.tokens, stream.done


@given(
    st.lists(st.tuples(TEXTS, EXTRA), min_size=1, max_size=8),
    st.lists(st.integers(0, 5_000), max_size=6),
    st.sampled_from([None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]),
    st.booleans(),
)
def test_the_short_way_and_the_long_way_agree(
    pieces: list[tuple[str, dict[str, Any]]], cuts: list[int], options: dict[str, Any] | None, ends: bool
) -> None:
    data = stream_of([text for text, _ in pieces], [extra for _, extra in pieces], ends=ends)
    seen = read(data, cuts, options, short=True)
    assert seen == read(data, cuts, options, short=False)
    assert [event["choices"][0]["delta"]["content"] for event in seen[0] if event["choices"]] == [t for t, _ in pieces]
    assert all(event["model"] == "mine" for event in seen[0])
    assert seen[1] == (Tokens(7, 3, 99) if ends else Tokens(7, 0, len(pieces)))


@pytest.mark.parametrize("engine", ["engine", "mine"])
def test_running_chunks_take_the_short_way(engine: str) -> None:
    stream = EventStream(asked(None))
    data = stream_of(["a", "b", "c"], [{}] * 3, ends=False).replace(b'"engine"', b'"%b"' % engine.encode())
    first, rest = data.split(b"\n\n", 1)
    stream.feed(first + b"\n\n")
    passed = stream._at_once(rest)  # pyright: ignore[reportPrivateUsage]
    assert passed is not None
    assert b"usage" not in passed
    assert passed.count(b'"model":"mine"') == 2
    assert stream.usage.tokens == Tokens(7, 0, 3)


def test_only_the_first_and_the_last_events_of_a_stream_that_comes_at_once_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[bytes] = []
    long_way = EventStream._event  # pyright: ignore[reportPrivateUsage]

    def watched(self: EventStream, event: bytes) -> bytes:
        decoded.append(event)
        return long_way(self, event)

    monkeypatch.setattr(EventStream, "_event", watched)
    stream = EventStream(asked(None))
    data = stream_of(["a"] * 50, [{}] * 50, ends=True)
    assert stream.feed(data).count(b"data: ") == 50
    assert decoded == [data.split(b"\n\n")[at] for at in (0, 50, 51)]
    assert (stream.done, stream.usage.tokens) == (True, Tokens(7, 3, 99))


COUNTS = st.none() | st.integers(0, 10**6)
USAGES = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": COUNTS, "completion_tokens": COUNTS, "total_tokens": COUNTS, "other": st.text(max_size=3),
        "prompt_tokens_details": st.none() | st.fixed_dictionaries({}, optional={"cached_tokens": COUNTS}),
    },
)  # fmt: skip


@given(text=TEXTS, usage=USAGES, says_usage=st.booleans())
def test_a_whole_answer_under_the_name_asked_for_is_passed_on_as_it_is_and_billed_as_under_any_other(
    text: str, usage: dict[str, Any] | None, says_usage: bool
) -> None:
    answer: dict[str, Any] = {"model": "mine", "choices": [{"message": {"content": text}}]}
    answer |= {"usage": usage} if says_usage else {}
    mine, other = json.dumps(answer).encode(), json.dumps(answer | {"model": "engine"}).encode()
    passed, tokens = whole(mine, asked(None))
    renamed, renamed_tokens = whole(other, asked(None))
    assert passed == mine
    assert json.loads(renamed) == answer
    assert tokens == renamed_tokens
