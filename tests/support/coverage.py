"""Which client proves which feature of the gateway: what tests say of themselves, for docs/compatibility.md.

`python -m tests.support.coverage` prints the table anew.
"""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TESTS = Path(__file__).parents[1]
CLIENTS = (
    "openai Python", "openai Node", "anthropic Python", "anthropic Node", "langchain-openai", "llm", "HTTP", "vLLM",
)  # fmt: skip
"""Columns of the table. The last is no client but the engine: the others are tested before one that answers at once."""


class Proof(NamedTuple):
    """A test drives this endpoint with this client and proves this feature."""

    endpoint: str
    feature: str
    client: str


def covers(client: str, endpoint: str, *features: str) -> Callable[[Any], Any]:
    """Say so of a test. The arguments are literals: they are read from the source too."""
    return pytest.mark.covers(client=client, endpoint=endpoint, features=features)


def proofs() -> set[Proof]:
    """What all tests say."""
    found: set[Proof] = set()
    for path in TESTS.rglob("test_*.py"):
        source = path.read_text()
        if "@covers(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "covers":
                        client, endpoint, *features = (str(ast.literal_eval(word)) for word in call.args)
                        found |= {Proof(endpoint, feature, client) for feature in features}
    return found


def table(found: set[Proof]) -> list[str]:
    """The proofs as lines of Markdown: a row for each feature of an endpoint, a column for each client."""
    rows = sorted({(proof.endpoint, proof.feature) for proof in found})
    lines = [f"| Endpoint | Feature | {' | '.join(CLIENTS)} |", "|---|---|" + ":-:|" * len(CLIENTS)]
    for endpoint, feature in rows:
        ticks = ("✓" if Proof(endpoint, feature, client) in found else "" for client in CLIENTS)
        lines.append(f"| `{endpoint}` | {feature} | {' | '.join(ticks)} |")
    return lines


if __name__ == "__main__":
    sys.stdout.write("\n".join(table(proofs())) + "\n")
