"""The control plane's own app over a real database, and people to call it as."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from kit.clock import FixedClock
from kit.db import Database
from kit.settings import Settings
from kit.web import create_app
from quotas.main import routers
from quotas.members import issue_admin_link
from quotas.uscc import check_character

PASSWORD = "correct horse 合流"


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the checkout's: a demo may have left a ledger's heads and secrets there."""
    monkeypatch.setenv("HELIU_HOME", str(tmp_path / "home"))


@pytest.fixture
def app(db: Database, clock: FixedClock) -> FastAPI:
    """Every route of quotas."""
    app = create_app("test", "0", routers(db, clock, Settings()), body_limit_bytes=1 << 20)
    app.state.db, app.state.clock = db, clock
    return app


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A caller without any account."""
    async with client(app) as anonymous:
        yield anonymous


def client(app: FastAPI, token: str | None = None, *, ip: str = "203.0.113.9") -> httpx.AsyncClient:
    """A caller with a token, from an address."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    transport = httpx.ASGITransport(app, client=(ip, 50_000), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://heliu.test", headers=headers)


def uscc(number: int) -> str:
    """A well-formed code with the right check character."""
    body = f"91420100MA4K{number:05d}"
    return body + check_character(body)


def application(number: int = 1, **changes: Any) -> dict[str, Any]:
    """What a firm sends to be let in."""
    return {
        "uscc": uscc(number),
        "name": f"汉江游戏工作室 {number}",
        "industry_cluster": "online_games",
        "district": "东湖新技术开发区",
        "contact_name": "王晓",
        "contact_email": f"contact{number}@studio{number}.example",
        "contact_phone": "+86 27 8765 4321",
        "owner_name": "李华",
        "owner_email": f"owner{number}@studio{number}.example",
        "owner_password": PASSWORD,
        **changes,
    }


@dataclass(frozen=True)
class Studio:
    """An active firm and its owner's client."""

    firm_id: str
    owner: httpx.AsyncClient
    email: str


class World:
    """A platform with an administrator; it makes firms, members and keys through the API only."""

    def __init__(self, app: FastAPI, admin: httpx.AsyncClient) -> None:
        self.app = app
        self.admin = admin
        self.anonymous = client(app)
        self._firms = 0

    def as_token(self, token: str, *, ip: str = "203.0.113.9") -> httpx.AsyncClient:
        return client(self.app, token, ip=ip)

    async def sign_in(self, email: str, password: str = PASSWORD) -> httpx.AsyncClient:
        answer = await self.anonymous.post("/api/sessions", json={"email": email, "password": password})
        assert answer.status_code == 201, answer.text
        return self.as_token(answer.json()["token"])

    async def applied(self, **changes: Any) -> dict[str, Any]:
        self._firms += 1
        answer = await self.anonymous.post("/api/firms", json=application(self._firms, **changes))
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def studio(self) -> Studio:
        firm = await self.applied()
        answer = await self.admin.post(f"/api/firms/{firm['id']}/review", json={"step": "approve"})
        assert answer.status_code == 200, answer.text
        email = application(self._firms)["owner_email"]
        return Studio(firm["id"], await self.sign_in(email), email)

    async def member(self, inviter: httpx.AsyncClient, email: str, *roles: str) -> httpx.AsyncClient:
        answer = await inviter.post("/api/invitations", json={"email": email, "roles": roles})
        assert answer.status_code == 201, answer.text
        body = {"token": answer.json()["token"], "name": "成员", "password": PASSWORD}
        answer = await self.anonymous.post("/api/invitations/accept", json=body)
        assert answer.status_code == 201, answer.text
        return self.as_token(answer.json()["token"])

    async def key(self, studio: Studio, **changes: Any) -> dict[str, Any]:
        body = {"name": "render farm", "scopes": ["inference"], **changes}
        answer = await studio.owner.post("/api/keys", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()


@pytest.fixture
async def world(app: FastAPI, db: Database, clock: FixedClock) -> World:
    """A platform whose administrator has used the one-time link."""
    async with db.transaction() as tx:
        token = await issue_admin_link(tx, clock.now())
    body = {"token": token, "email": "admin@heliu.example", "name": "管理员", "password": PASSWORD}
    async with client(app) as anonymous:
        answer = await anonymous.post("/api/admin/claim", json=body)
    assert answer.status_code == 201, answer.text
    return World(app, client(app, answer.json()["token"]))
