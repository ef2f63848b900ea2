"""The demo goes on wherever it was interrupted: cut off after every single call that changes something."""

import asyncio
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from rich.console import Console

from heliu.client import Client
from heliu.client.transport import Transport
from heliu.demo.act2_firm import KEY_NAME, firm_is_let_in, rival
from heliu.demo.act3_terms import PREPAID_MICRO_YUAN, PROGRAMME_NAME, terms_are_set
from heliu.demo.act6_model import base_model_is_wanted
from heliu.demo.actors import RIVAL_USCC, USCC, Memory
from heliu.demo.stage import Stage
from heliu.demo.story import Story
from heliu.main import build_api
from kit.errors import Refused
from kit.settings import Settings
from tests.support.until import until

TELLINGS_MAX = 60


class Cut(BaseException):
    """Ctrl-C, at the worst moment."""


class CutOnce(Transport):
    """Cut off after each different call that changes something, once."""

    done: set[tuple[str, str, str]] = set()

    def call(self, method: str, path: str, *, body: Any = None, **rest: Any) -> httpx.Response:
        answer = super().call(method, path, body=body, **rest)
        kind = (method, path, json.dumps(body, sort_keys=True))
        if method != "GET" and kind not in self.done:
            self.done.add(kind)
            raise Cut
        return answer

    def with_token(self, token: str | None) -> "CutOnce":
        return CutOnce(self.base_url, token, http=self._http)


@pytest.fixture
def settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(CutOnce, "done", set())
    return Settings(home=tmp_path, database_url=database_url, database_pool_size=3)


@pytest.fixture
def address(settings: Settings) -> Iterator[str]:
    """The whole control plane, listening."""
    server = uvicorn.Server(uvicorn.Config(build_api(settings), port=0, log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        until(lambda: server.started, seconds=20, what="the server listens")
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


def tell(settings: Settings, transport: Transport) -> Story:
    """The acts that need no node, from what is on disk and on the platform."""
    with Client(transport=transport) as anyone:
        stage = Stage(Console(file=io.StringIO(), width=118))
        story = Story(settings, stage, Memory(settings.home), anyone)
        firm_is_let_in(story)
        terms_are_set(story)
        base_model_is_wanted(story)
        rival(story)
        assert stage.failed == []
        check_that_nothing_is_there_twice(story)
        return story


def check_that_nothing_is_there_twice(story: Story) -> None:
    administrator, owner = story.administrator, story.owner
    firms = Counter(firm.uscc for firm in administrator.firms.list())
    assert (firms[USCC], firms[RIVAL_USCC]) == (1, 1)
    assert [key.name for key in owner.keys.list() if key.revoked_at is None] == [KEY_NAME]
    assert [one.name for one in administrator.vouchers.programmes()] == [PROGRAMME_NAME]
    assert len(owner.vouchers.list()) == 1
    assert owner.money.account().balance_micro_yuan == PREPAID_MICRO_YUAN
    assert len([one for one in administrator.deployments.list() if one.state == "active"]) == 1
    assert administrator.money.check_ledger().ok


def test_the_demo_goes_on_after_an_interruption_behind_every_call_that_changes_something(
    settings: Settings, address: str
) -> None:
    for _telling in range(TELLINGS_MAX):
        try:
            story = tell(settings, CutOnce(address, None))
        except Cut:
            continue
        break
    else:
        pytest.fail(f"the story did not come to its end in {TELLINGS_MAX} tellings")
    paths = {path for _, path, _ in CutOnce.done}
    assert {"/api/admin/claim", "/api/invitations", "/api/invitations/accept", "/api/keys", "/api/vouchers"} <= paths
    assert story.cast.key and story.cast.administrator and story.cast.developer
    again = tell(settings, Transport(address, None))
    assert again.cast == story.cast


def test_a_damaged_memory_is_refused_with_what_to_do(settings: Settings) -> None:
    (settings.home / "demo.json").write_text('{"runs": "many"}')
    with pytest.raises(Refused, match=r"demo\.json is damaged") as caught:
        Memory(settings.home)
    assert "HELIU_HOME" in (caught.value.hint or "")
