"""Every route of the control plane, with a bad value in every place: refused in problem details, never broken."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from tests.api.quotas.test_isolation import ABOUT_THE_CALLER, example, routes
from tests.api.serving.conftest import City

BAD_VALUES: list[Any] = [None, True, -1, 10**40, "\0", "²", "x" * 5_000, "2026-13-45T99:00:00Z", [None]]
BAD_TEXTS = ["²", "-1", "x" * 5_000, "%"]


def properties(city: City, operation: dict[str, Any]) -> dict[str, Any]:
    """The fields of a route's JSON body."""
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    if "$ref" in schema:
        schema = city.app.openapi()["components"]["schemas"][schema["$ref"].split("/")[-1]]
    return schema.get("properties", {})


def bad_requests(city: City, path: str, operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One request for each bad value in each place; everything else in it is as it should be."""
    named = {one["name"]: one for one in operation.get("parameters", []) if one["in"] != "header"}
    good = {name: str(example(city.app, one["schema"], {})) for name, one in named.items() if one["in"] == "path"}
    fields = properties(city, operation)
    body = {name: example(city.app, schema, {}) for name, schema in fields.items()}

    def request(places: dict[str, str], params: dict[str, str], content: Any) -> dict[str, Any]:
        url = re.sub(r"{(\w+)}", lambda match: quote(places[match[1]], safe=""), path)
        sent = {"content": json.dumps(content), "headers": {"Content-Type": "application/json"}} if fields else {}
        return {"url": url, "params": params, **sent}

    for name, one in named.items():
        for bad in BAD_TEXTS:
            inside = one["in"] == "path"
            yield request(good | {name: bad} if inside else good, {} if inside else {name: bad}, body)
    if fields:
        yield request(good, {}, body | {"surprise": 1})
        yield request(good, {}, [])
    for name in fields:
        for bad in BAD_VALUES:
            yield request(good, {}, body | {name: bad})


async def test_a_bad_value_anywhere_is_a_problem_with_a_code_and_never_an_error_of_ours(city: City) -> None:
    refused: list[int] = []
    for method, path, operation in routes(city.app):
        if (method, path) in ABOUT_THE_CALLER:
            continue
        for request in bad_requests(city, path, operation):
            answer = await city.admin.request(method, **request)
            assert answer.status_code < 500, (method, request["url"][:80], str(request)[:300])
            if answer.status_code >= 400:
                refused.append(answer.status_code)
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["code"] and answer.json()["detail"]
                assert "match pattern" not in answer.text, "a regular expression is nothing for people"
    assert refused.count(422) > 1_000
    assert (await city.admin.get("/api/me")).status_code == 200, "it was the administrator all along"


async def test_a_pool_that_is_none_is_refused_in_words_wherever_it_stands(city: City) -> None:
    for path, body, field in (
        ("/api/quotas", {"pool": "East A100"}, "pool"),
        ("/api/deployments", {"pool": "East A100"}, "pool"),
        ("/api/quotes", {"pools": ["East A100"]}, "pools.0"),
        ("/api/quotes", {"pools": [["East A100"]]}, "pools.0.0"),
    ):
        answer = await city.admin.post(path, json=body)
        told = [fault["message"] for fault in answer.json()["faults"] if fault["field"] == field]
        assert any(one.startswith("a pool is centre/accelerator") and "east/a100" in one for one in told), (path, told)
