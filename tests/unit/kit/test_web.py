"""What every HTTP answer of the platform has in common, seen from outside."""

from collections.abc import AsyncIterator
from ipaddress import ip_network

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from psycopg import errors as pg
from sqlalchemy.exc import IntegrityError, OperationalError

from kit import errors
from kit.proxies import TrustedProxies
from kit.web import Body, bearer_of, chunks_of, create_app, status_of

LIMIT = 64
router = APIRouter()


class Order(Body):
    count: int
    note: str = ""
    sizes: list[int | list[int]] = []


@router.post("/orders")
async def order(body: Order) -> dict[str, int]:
    return {"count": body.count}


@router.api_route("/refuse/{kind}", methods=["GET", "POST"])
async def refuse(kind: str) -> None:
    raise {
        "rule": errors.Refused("no quota in this pool", code="no_quota", hint="ask for quota", details={"pool": "p"}),
        "stranger": errors.Unauthenticated("who are you?"),
        "hurry": errors.RateLimited("too fast", retry_after_seconds=2.4),
        "bug": ZeroDivisionError("secret detail"),
        "deadlock": OperationalError("UPDATE secret", {}, pg.DeadlockDetected("secret detail")),
        "serialization": OperationalError("UPDATE secret", {}, pg.SerializationFailure("secret detail")),
        "constraint": IntegrityError("UPDATE secret", {}, pg.CheckViolation("secret detail")),
    }[kind]


@router.get("/whoami")
async def whoami(request: Request) -> dict[str, str | None]:
    return {"bearer": bearer_of(request)}


@router.get("/origin")
async def origin(request: Request) -> str | None:
    return request.client.host if request.client else None


@router.put("/uploads/{name}")
async def upload(name: str, request: Request) -> dict[str, int]:
    return {"bytes": sum([len(chunk) async for chunk in chunks_of(request)])}


@pytest.fixture
def app() -> FastAPI:
    return create_app("test", "1", [router], body_limit_bytes=LIMIT, unlimited_prefixes=("/uploads",))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_a_refusal_is_a_problem_with_code_hint_and_details(client: httpx.AsyncClient) -> None:
    answer = await client.get("/refuse/rule")
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"].endswith("/no_quota")
    assert {key: problem[key] for key in ("title", "status", "detail", "code", "hint", "retryable", "details")} == {
        "title": "Conflict",
        "status": 409,
        "detail": "no quota in this pool",
        "code": "no_quota",
        "hint": "ask for quota",
        "retryable": False,
        "details": {"pool": "p"},
    }


async def test_a_stranger_is_told_how_to_identify(client: httpx.AsyncClient) -> None:
    answer = await client.get("/refuse/stranger")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_who_was_too_fast_is_told_when_to_come_back(client: httpx.AsyncClient) -> None:
    answer = await client.get("/refuse/hurry")
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["retryable"]) == (429, "2", True)


@pytest.mark.parametrize("kind", ["deadlock", "serialization"])
async def test_who_met_others_in_the_database_is_told_to_send_it_again(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post(f"/refuse/{kind}")
    said = answer.json()
    assert (answer.status_code, said["code"], said["retryable"]) == (503, "busy", True)
    assert answer.headers["retry-after"] == "1"
    assert "secret" not in answer.text


@pytest.mark.parametrize("kind", ["bug", "constraint"])
async def test_a_bug_is_answered_without_its_details(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.get(f"/refuse/{kind}")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "headers", "repeatable"),
    [("GET", {}, True), ("POST", {}, False), ("POST", {"Idempotency-Key": "once"}, True)],
)
async def test_a_bug_says_that_it_may_be_sent_again_only_when_that_cannot_act_twice(
    client: httpx.AsyncClient, method: str, headers: dict[str, str], repeatable: bool
) -> None:
    said = (await client.request(method, "/refuse/bug", headers=headers)).json()
    assert said["retryable"] is repeatable
    assert said["hint"].startswith("send it again" if repeatable else "look whether it was done")
    assert "nothing was changed" not in said["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [({"count": "1"}, "count"), ({"count": 1.5}, "count"), ({"count": 1, "size": 2}, "size"), ({}, "count")],
    ids=["text for a number", "fraction for a whole number", "unknown field", "missing field"],
)
async def test_a_body_that_does_not_fit_is_refused_by_field(
    client: httpx.AsyncClient, body: dict[str, object], field: str
) -> None:
    answer = await client.post("/orders", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert [fault["field"] for fault in answer.json()["faults"]] == [field]


async def test_of_what_may_be_this_or_that_the_kind_it_comes_nearest_to_says_what_is_wrong(
    client: httpx.AsyncClient,
) -> None:
    said = (await client.post("/orders", json={"count": 1, "sizes": [[1, "2"]]})).json()
    assert said["detail"].startswith("sizes.0.1: ")


async def test_what_is_not_json_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", content=b"{count:", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


async def test_unknown_addresses_and_methods_are_problems_too(client: httpx.AsyncClient) -> None:
    absent, wrong = await client.get("/nothing"), await client.delete("/orders")
    assert (absent.status_code, absent.json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")


async def test_a_body_over_the_limit_is_refused_before_it_is_read(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", json={"count": 1, "note": "x" * LIMIT})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_a_body_that_hides_its_length_is_cut_off_at_the_limit(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * LIMIT

    answer = await client.post("/orders", content=endless(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_routes_that_bound_their_own_bodies_are_not_limited(client: httpx.AsyncClient) -> None:
    answer = await client.put("/uploads/a", content=b"x" * 10 * LIMIT)
    assert answer.json() == {"bytes": 10 * LIMIT}


@pytest.mark.parametrize(
    ("header", "bearer"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", None), ("Bearer", None), ("", None)],
)
async def test_only_a_bearer_is_a_bearer(client: httpx.AsyncClient, header: str, bearer: str | None) -> None:
    answer = await client.get("/whoami", headers={"authorization": header})
    assert answer.json() == {"bearer": bearer}


async def test_every_answer_has_a_request_id_of_its_own(client: httpx.AsyncClient) -> None:
    answers = [await client.get("/healthz"), await client.get("/nothing"), await client.get("/refuse/rule")]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 3
    assert all(request_id.startswith("req_") for request_id in ids)


async def test_requests_are_counted_by_route_and_never_by_what_was_in_the_address(client: httpx.AsyncClient) -> None:
    await client.get("/refuse/rule")
    await client.get("/secret-in-an-address")
    metrics = (await client.get("/metrics")).text
    assert 'heliu_http_requests_total{method="GET",route="/refuse/{kind}",status="409"}' in metrics
    assert 'route="other",status="404"' in metrics
    assert "secret-in-an-address" not in metrics


@pytest.mark.parametrize(
    ("error", "status"), [(errors.NoMoney("x"), 402), (errors.Refused("x"), 409), (errors.HeliuError("x"), 500)]
)
def test_an_error_has_the_status_of_its_nearest_known_kind(error: errors.HeliuError, status: int) -> None:
    assert status_of(error) == status
    assert status_of(type("Special", (type(error),), {})("x")) == status


@pytest.mark.parametrize(
    ("peer", "said", "client"),
    [
        ("10.1.2.3", ["1.1.1.1", "203.0.113.7"], "203.0.113.7"),
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", ["unknown"], None),
        ("203.0.113.50", ["198.51.100.1"], "203.0.113.50"),
    ],
)
async def test_a_request_comes_from_whom_a_trusted_proxy_names(peer: str, said: list[str], client: str | None) -> None:
    app = create_app("t", "1", [router], body_limit_bytes=64, proxies=TrustedProxies([ip_network("10.0.0.0/8")]))
    transport = httpx.ASGITransport(app, client=(peer, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get("/origin", headers=[("X-Forwarded-For", one) for one in said])
    assert answer.json() == client
