"""Every route of the gateway × a key that may not: refused in OpenAI's shape, nothing shown, no row left."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit.auth import SYSTEM
from kit.clock import utc_now
from kit.db import Database
from quotas.keys import KeySpec, issue_key, key_row, revoke_key
from quotas.vocabulary import FirmId, KeyId, Scope
from serving.gateway.bench_target import Furnished, furnish
from serving.gateway.endpoints import ENDPOINTS
from tests.support.gateway_process import GatewayProcess, gateway_process
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.money import open_firm, yuan
from tests.support.row_counts import nothing_written
from tests.support.serving import add_adapter, add_project

MODEL = "city-model"
KINDS = ("none", "unknown", "expired", "revoked")
PRIVATE, ABSENT = "secret-lore", "absent-lore"
FIELDS = {
    "messages": [{"role": "user", "content": "hi"}],
    "prompt": "hi",
    "input": "hi",
    "query": "q",
    "documents": ["d"],
}
FIELDS |= {"text_1": "a", "text_2": "b"}


@dataclass
class Street:
    """A gateway process, the firm that owns a private adapter, and keys of others."""

    gateway: GatewayProcess
    db: Database
    owner: Furnished
    keys: dict[str, str | None]

    async def ask(self, path: str, model: str, key: str | None) -> httpx.Response:
        wanted = {name: FIELDS[name] for name in ENDPOINTS[path.encode()].input_fields if name in FIELDS}
        return await self._send("POST", path, key, json={"model": model, "max_tokens": 4, **wanted})

    async def get(self, path: str, key: str | None) -> httpx.Response:
        return await self._send("GET", path, key)

    async def _send(self, method: str, path: str, key: str | None, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        async with httpx.AsyncClient(base_url=self.gateway.url, headers=headers, timeout=20) as http:
            return await http.request(method, path, **options)


PATHS = [path.decode() for path in ENDPOINTS]


@pytest.fixture
def engine() -> Iterator[MockEngine]:
    with mock_engine("--model", MODEL) as started:
        yield started


@pytest.fixture
async def street(db: Database, database_url: str, tmp_path: Path, engine: MockEngine) -> AsyncIterator[Street]:
    owner = await furnish(db, [engine.url], model=MODEL)
    now = utc_now()
    async with db.transaction() as tx:
        await add_adapter(tx, owner.firm_id, PRIVATE, now=now, base_model=MODEL)
        stranger = await open_firm(tx, now=now, paid_in=yuan(100))
        await add_project(tx, stranger, now=now)
    foreign, expired, revoked = [await _key(db, stranger, name) for name in ("foreign", "expired", "revoked")]
    keys = {
        "none": None,
        "unknown": "hl_nobody_" + "x" * 43,
        "expired": expired,
        "revoked": revoked,
        "foreign": foreign,
    }
    with gateway_process(database_url, tmp_path / "gw") as gateway:
        yield Street(gateway, db, owner, keys)


async def _key(db: Database, firm_id: FirmId, name: str) -> str:
    made_at = utc_now() - timedelta(days=2)
    spec = KeySpec(name, frozenset({Scope.INFERENCE}), expires_at=made_at + timedelta(1) if name == "expired" else None)
    async with db.transaction() as tx:
        issued = await issue_key(tx, firm_id, spec, by=SYSTEM, now=made_at)
        if name == "revoked":
            await revoke_key(tx, await key_row(tx, KeyId(issued.key.id)), by=SYSTEM, now=utc_now())
    return issued.token


async def test_no_expired_revoked_or_unknown_key_opens_any_route_and_nothing_is_held(street: Street) -> None:
    async with nothing_written(street.db):
        for path in PATHS:
            for kind in KINDS:
                answer = await street.ask(path, MODEL, street.keys[kind])
                code = "missing_api_key" if kind == "none" else "invalid_api_key"
                assert answer.status_code == 401, (path, kind, answer.text)
                assert code in answer.text or answer.json()["error"]["type"] == "authentication_error", answer.text
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/v1/usage"):
            for kind in KINDS:
                assert (await street.get(path, street.keys[kind])).status_code == 401, (path, kind)


async def test_a_foreign_firms_adapter_is_answered_like_one_that_does_not_exist_on_every_route(street: Street) -> None:
    key, compared = street.keys["foreign"], 0
    assert {model["id"] for model in (await street.get("/v1/models", key)).json()["data"]} == {MODEL}
    assert PRIVATE in (await street.get("/v1/models", street.owner.key)).text
    async with nothing_written(street.db):
        for path in PATHS:
            foreign, absent = [await street.ask(path, name, key) for name in (PRIVATE, ABSENT)]
            assert foreign.status_code == absent.status_code >= 400, (path, foreign.text)
            assert foreign.text.replace(PRIVATE, "M") == absent.text.replace(ABSENT, "M"), path
            compared += foreign.status_code == 404
        pages = [await street.get(f"/v1/models/{name}", key) for name in (PRIVATE, ABSENT)]
        assert [page.status_code for page in pages] == [404, 404]
        assert pages[0].text.replace(PRIVATE, "M") == pages[1].text.replace(ABSENT, "M")
        usage = await street.get("/v1/usage", key)
        assert street.owner.firm_id not in usage.text and street.owner.key_id not in usage.text
    assert compared >= 6, "most routes got as far as the model's name"
