"""Chat traces as requests: when, how long, and which blocks of 512 tokens their prompts are made of."""

import csv
import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kit.errors import InvalidInput

BLOCK_TOKENS = 512
TICK_MS = 3_000


@dataclass(frozen=True, slots=True)
class Request:
    """One chat request: arrival in seconds, lengths in tokens, one hash for each block of its prompt."""

    at: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


def read(path: Path, *, speed: float, limit: int | None = None) -> list[Request]:
    """Requests of a Mooncake (.jsonl) or Azure (.csv) trace, time divided by `speed`. Raises InvalidInput."""
    match path.suffix:
        case ".jsonl":
            return _mooncake(path, speed, limit)
        case ".csv":
            return _azure(path, speed, limit)
        case other:
            raise InvalidInput(
                f"{path} ends in {other!r}",
                hint="give a Mooncake .jsonl or an Azure .csv trace",
            )


def _mooncake(path: Path, speed: float, limit: int | None) -> list[Request]:
    """The trace's clock ticks every three seconds: the requests of one tick are spread evenly over it."""
    ticks: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number == limit:
                break
            row = json.loads(line)
            ticks[round(row["timestamp"] / TICK_MS)].append(row)
    return [
        Request(
            (tick + position / len(rows)) * TICK_MS / 1000 / speed,
            row["input_length"],
            max(1, row["output_length"]),
            tuple(row["hash_ids"]),
        )
        for tick, rows in sorted(ticks.items())
        for position, row in enumerate(rows)
    ]


def _azure(path: Path, speed: float, limit: int | None) -> list[Request]:
    """No prefixes are known, so every block is its own."""
    requests: list[Request] = []
    next_block = 0
    start: datetime | None = None
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if len(requests) == limit:
                break
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            start = start or at
            prompt = int(row["ContextTokens"])
            blocks = range(next_block, next_block + max(1, -(-prompt // BLOCK_TOKENS)))
            next_block = blocks.stop
            seconds = (at - start).total_seconds() / speed
            requests.append(Request(seconds, prompt, max(1, int(row["GeneratedTokens"])), tuple(blocks)))
    return requests
