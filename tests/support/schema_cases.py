"""Requests that schemathesis makes from an OpenAPI schema, right and wrong ones, sent in the test's own loop."""

import asyncio
import json
import os
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode

EXAMPLES = int(os.environ.get("HELIU_SCHEMA_EXAMPLES", "100"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
ANSWER_SECONDS = 20


def cases_of(schema: dict[str, Any], *, leave_out: frozenset[tuple[str, str]] = frozenset()) -> st.SearchStrategy[Any]:
    """Cases of every operation, half of them breaking the schema."""
    loaded = schemathesis.openapi.from_dict(schema)
    results = list(loaded.get_all_operations())
    operations = [result.ok() for result in results if isinstance(result, Ok)]
    assert len(operations) == len(results), "the schema is sound"
    chosen = [one for one in operations if (one.method.upper(), one.path) not in leave_out]
    assert chosen
    modes = st.sampled_from(list(GenerationMode))
    return st.tuples(st.sampled_from(chosen), modes).flatmap(
        lambda drawn: drawn[0].as_strategy(generation_mode=drawn[1])
    )


async def send(http: httpx.AsyncClient, case: Any) -> httpx.Response:
    """Its answer; an answer that does not come is a failure."""
    made = case.as_transport_kwargs(base_url=str(http.base_url).rstrip("/"))
    headers = {name: value for name, value in made["headers"].items() if value.isprintable() and value.isascii()}
    content = made.get("data")
    if "json" in made:
        content = json.dumps(made["json"]).encode()
    elif isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    elif not isinstance(content, bytes):
        content = None
    params = {name: str(value).encode("utf-8", "replace").decode() for name, value in made.get("params", {}).items()}
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await http.request(
                made["method"], made["url"], params=params or None, headers=headers, content=content
            )
    except (TimeoutError, httpx.HTTPError) as error:
        raise AssertionError(f"{type(error).__name__}: {case.as_curl_command()}") from error
