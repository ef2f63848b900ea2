"""A client that goes away stops the engine and pays for what was generated until then."""

import json
from typing import Any

import httpx
import pytest

from heliu.client.serving_views import EngineLine
from heliu.demo.story import BASE_MODEL
from tests.e2e.platform.conftest import Telling
from tests.support.until import until

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(240, func_only=True)]

PIECES_READ = 8
TOKENS_ASKED = 400
QUESTION = "Count slowly from one to five hundred."
LONG_QUESTION = "lantern " * 4000


def body(**changes: Any) -> dict[str, Any]:
    return {
        "model": BASE_MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": TOKENS_ASKED,
        "temperature": 0,
        "ignore_eos": True,
        **changes,
    }


def settled(telling: Telling, seconds: float = 60) -> EngineLine:
    """The live engine's line once its counters and the bills have met."""

    def look() -> EngineLine | None:
        line = telling.story.administrator.deployments.engines()[-1]
        return line if line.verdict != "open" else None

    return until(look, seconds=seconds, what="the reconciliation of the engine")


def test_a_client_that_goes_away_stops_the_engine_and_pays_until_then(telling: Telling) -> None:
    before = settled(telling)
    headers = {"Authorization": f"Bearer {telling.story.cast.key}"}
    url = f"{telling.platform.settings.gateway_url}/v1/chat/completions"
    telling.search.learn("a prompt of a broken stream", QUESTION)
    pieces = 0
    with httpx.stream("POST", url, json=body(stream=True), headers=headers, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            pieces += _has_content(line)
            if pieces == PIECES_READ:
                break

    def billed_more() -> EngineLine | None:
        line = settled(telling)  # for a moment the bill may be ahead of the engine's last report
        return line if line.billed_generation > before.billed_generation and line.verdict == "exact" else None

    after = until(billed_more, seconds=60, what="the bill of the broken stream")
    generated = after.billed_generation - before.billed_generation
    assert PIECES_READ <= generated < TOKENS_ASKED / 2, "the engine went on for nobody"


def test_a_prompt_longer_than_the_context_is_refused_in_openais_shape_and_costs_nothing(telling: Telling) -> None:
    before = settled(telling)
    headers = {"Authorization": f"Bearer {telling.story.cast.key}"}
    url = f"{telling.platform.settings.gateway_url}/v1/chat/completions"
    long = body(messages=[{"role": "user", "content": LONG_QUESTION}])
    answer = httpx.post(url, json=long, headers=headers, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded", error
    telling.search.learn("a long prompt", LONG_QUESTION[:100])
    assert settled(telling).billed_prompt == before.billed_prompt


def test_a_revoked_key_is_refused_within_two_seconds(telling: Telling) -> None:
    issued = telling.story.owner.keys.issue("short-lived", ["inference"])
    models = f"{telling.platform.settings.gateway_url}/v1/models"
    headers = {"Authorization": f"Bearer {issued.token}"}
    until(lambda: httpx.get(models, headers=headers).status_code == 200, seconds=5, what="the new key opens")
    telling.story.owner.keys.revoke(issued.key.id)
    until(lambda: httpx.get(models, headers=headers).status_code == 401, seconds=2, what="the revocation")


def _has_content(line: str) -> bool:
    """Whether a line of the stream brings text; the first chunk only names the role."""
    choices = json.loads(line[6:])["choices"] if line.startswith("data: {") else []
    return any(choice["delta"].get("content") for choice in choices)
