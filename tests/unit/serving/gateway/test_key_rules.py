"""What a key allows is what the gateway lets through: scopes, models, addresses, limits, budgets."""

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from kit.errors import NoMoney, Refused
from kit.proxies import TrustedProxies
from quotas.vocabulary import Scope
from serving.gateway.gate import Denied
from serving.limits import Limited, LimitReason
from tests.support.gateways import FakePlane, RawClient, chat, grant, post, running
from tests.support.mock_engines import MockEngine, mock_engine


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", "engine-secret") as started:
        yield started


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"scopes": frozenset({Scope.JOBS_WRITE})}, 403, "missing_scope"),
        ({"ip_ranges": ("203.0.113.0/24",)}, 403, "ip_not_allowed"),
        ({"ip_ranges": ("127.0.0.0/8",)}, 200, None),
        ({"models": frozenset({"another"})}, 404, "model_not_found"),
        ({"models": frozenset({"mock-model"})}, 200, None),
        ({"tokens_per_minute": 10}, 429, "request_exceeds_tokens_per_minute"),
        ({"tokens_per_minute": 10_000}, 200, None),
        ({"counts_tokens": True}, 200, None),
    ],
)
async def test_a_key_is_held_to_what_it_allows(
    engine: MockEngine, tmp_path: Path, changes: dict[str, Any], status: int, code: str | None
) -> None:
    plane = FakePlane(engines=[engine.url], grants={"hl_a_key": grant(**changes)})
    async with running(plane, tmp_path) as gateway:
        answer = await post(gateway.port, chat(max_tokens=5), key="hl_a_key")
    assert (answer.status, answer.json().get("error", {}).get("code")) == (status, code)


@pytest.mark.parametrize(
    ("rule", "changes", "status", "code", "kind"),
    [
        (NoMoney("used up", code="budget_reached", hint="Ask."), {}, 402, "budget_reached", "insufficient_quota"),
        (Refused("none left", code="limit_tokens"), {"counts_tokens": True}, 429, "limit_tokens", "insufficient_quota"),
        (None, {}, 402, "insufficient_quota", "insufficient_quota"),
    ],
)
async def test_a_refusal_for_money_names_the_rule_in_openais_shape(
    engine: MockEngine,
    tmp_path: Path,
    rule: Refused | None,
    changes: dict[str, Any],
    status: int,
    code: str,
    kind: str,
) -> None:
    plane = FakePlane(engines=[engine.url], grants={"hl_a_key": grant(**changes)}, rule=rule)
    if changes:
        plane.tokens_left = 3
    else:
        plane.money["firm_1"] = 1
    async with running(plane, tmp_path) as gateway:
        answer = await post(gateway.port, chat(max_tokens=5), key="hl_a_key")
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["type"]) == (status, code, kind)
    assert answer.headers.get("x-should-retry") == ("false" if status == 429 else None), "SDKs would try again"
    if rule is not None and rule.hint is not None:
        assert error["message"] == f"{rule.message} {rule.hint}"


@pytest.mark.parametrize(
    ("reason", "says", "again"),
    [
        (LimitReason.REQUESTS, "this key's limit is 9,000 requests per minute, and so many", b"retry-after: 2\r\n"),
        (LimitReason.TOKENS, "this key's limit is 9,000 tokens per minute, and of this one", b"retry-after: 2\r\n"),
        (LimitReason.CONCURRENCY, "this key's limit is 9,000 requests at once", b"retry-after: 2\r\n"),
        (LimitReason.TOO_LARGE, "this request alone reserves 12,345; lower max_tokens", b"x-should-retry: false\r\n"),
    ],
)
def test_a_limit_says_whose_it_is_how_much_it_allows_and_when_to_try_again(
    reason: LimitReason, says: str, again: bytes
) -> None:
    refusal = Denied(Limited(reason, 9_000, 1_500), "this key's limit").refusal(12_345)
    assert (refusal.status, refusal.code, refusal.headers()) == (429, reason, again)
    assert says in refusal.message


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/mock-model", "/v1/usage"])
@pytest.mark.parametrize(("network", "status"), [("203.0.113.0/24", 403), ("127.0.0.0/8", 200)])
async def test_a_key_tells_nothing_to_an_address_it_may_not_be_used_from(
    engine: MockEngine, tmp_path: Path, path: str, network: str, status: int
) -> None:
    plane = FakePlane(engines=[engine.url], grants={"hl_a_key": grant(ip_ranges=(network,))})
    async with running(plane, tmp_path) as gateway:
        client = await RawClient.to(gateway.port)
        client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer hl_a_key\r\n\r\n".encode())
        assert (await client.answer()).status == status
        await client.close()


@pytest.mark.parametrize(
    ("proxies", "said", "status"),
    [
        ("127.0.0.0/8", "203.0.113.7", 200),
        ("127.0.0.0/8", "203.0.113.7, 198.51.100.1", 403),  # the client made the first one up
        ("127.0.0.0/8", "203.0.113.7\r\nX-Forwarded-For: 198.51.100.1", 403),
        ("127.0.0.0/8", "198.51.100.1, 203.0.113.7, 127.0.0.9", 200),
        ("10.0.0.0/8", "203.0.113.7", 403),  # whoever calls is no proxy of ours
    ],
)
async def test_an_ingress_is_believed_about_an_address_and_nobody_else(
    engine: MockEngine, tmp_path: Path, proxies: str, said: str, status: int
) -> None:
    plane = FakePlane(engines=[engine.url], grants={"hl_a_key": grant(ip_ranges=("203.0.113.0/24",))})
    async with running(plane, tmp_path, proxies=TrustedProxies([ip_network(proxies)])) as gateway:
        answer = await post(gateway.port, chat(), key="hl_a_key", extra=f"X-Forwarded-For: {said}\r\n")
        client = await RawClient.to(gateway.port)
        head = f"Host: x\r\nAuthorization: Bearer hl_a_key\r\nX-Forwarded-For: {said}\r\n\r\n"
        client.send(f"GET /v1/models HTTP/1.1\r\n{head}".encode())
        listed = await client.answer()
        await client.close()
    assert (answer.status, listed.status) == (status, status)
