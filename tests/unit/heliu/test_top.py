"""`heliu top`: what it asks, what it shows, live in Textual's own terminal."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from textual.widgets import DataTable, Static
from typer.testing import CliRunner

from heliu import cli
from heliu.top.app import TABLES, Top
from heliu.top.seen import Refused, asking, look

FIRM = {"id": "firm_1", "name": "Riverside Games", "state": "active"}
ANSWERS: dict[str, Any] = {
    "/api/me": {"firm": FIRM},
    "/api/firms?state=active": [FIRM, {"id": "firm_2", "name": "Han Films", "state": "active"}],
    "/api/account?firm_id=firm_1": {"available_micro_yuan": 12_340_000},
    "/api/account?firm_id=firm_2": {"available_micro_yuan": 0},
    "/api/models": [{"name": "smollm2", "capabilities": ["chat"], "replicas_ready": 1, "deprecated_at": None}],
    "/api/replicas": [
        {
            "id": "rep_1", "model": "smollm2", "state": "ready", "reason": None, "requests_running": 3,
            "requests_waiting": 1, "adapters": [{"adapter_id": "adp_1", "state": "ready"}, {"state": "loading"}],
        }
    ],
    "/api/pools": [{"name": "east/a100", "nodes": 2, "gpu_milli": 16_000, "placed_milli": 5_500}],
    "/api/queue": {
        "waiting": 1, "running": 2,
        "entries": [
            {
                "position": 1, "id": "job_1", "name": "shots", "firm_id": "firm_2", "need_milli": 4_000,
                "detail": "all GPUs are placed", "expected_start": "2026-11-02T03:30:00Z",
            }
        ],
    },
}  # fmt: skip


class Platform:
    """A control plane of canned answers, over real HTTP."""

    def __init__(self) -> None:
        self.answers = dict(ANSWERS)
        platform = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = platform.answers.get(self.path)
                status = found if isinstance(found, int) else 200 if found is not None else 404
                body = json.dumps({"detail": "no"} if status != 200 else found).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def seen(self) -> dict[str, Any]:
        with httpx.Client(base_url=self.url) as client:
            return look(asking(client))


@pytest.fixture
def platform() -> Iterator[Platform]:
    made = Platform()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def cells(app: Top, name: str) -> list[list[str]]:
    table = app.query_one(f"#{name}", DataTable)
    return [list(table.get_row_at(number)) for number in range(table.row_count)]


async def settled(app: Top, pilot: Any) -> None:
    await app.workers.wait_for_complete()
    await pilot.pause()


async def test_it_shows_the_platform_and_renews_it(platform: Platform) -> None:
    app = Top(platform.seen, every_seconds=3600)
    async with app.run_test(size=(160, 50)) as pilot:
        await settled(app, pilot)
        assert cells(app, "firms") == [
            ["Riverside Games", "active", "0", "12.34"], ["Han Films", "active", "1", "0.00"]
        ]  # fmt: skip
        assert cells(app, "replicas") == [["rep_1", "smollm2", "ready", "3", "1", "1", ""]]
        assert cells(app, "pools") == [["east/a100", "2", "16", "5.5"]]
        assert cells(app, "queue") == [["1", "shots", "Han Films", "4", "all GPUs are placed", "03:30"]]
        platform.answers["/api/queue"] = {"waiting": 0, "running": 3, "entries": []}
        await pilot.press("r")
        await settled(app, pilot)
        assert cells(app, "queue") == []
        assert "0 waiting, 3 placed" in str(app.query_one("#note", Static).render())


async def test_a_platform_that_goes_away_leaves_what_was_seen_last_and_says_so(platform: Platform) -> None:
    app = Top(platform.seen, every_seconds=3600)
    async with app.run_test(size=(160, 50)) as pilot:
        await settled(app, pilot)
        platform.answers["/api/me"] = 503
        await pilot.press("r")
        await settled(app, pilot)
        assert len(cells(app, "firms")) == 2
        assert str(app.query_one("#note", Static).render()) == "no"
        await pilot.press("q")
    assert app.return_code == 0


def test_a_firms_member_sees_its_own_firm(platform: Platform) -> None:
    platform.answers["/api/firms?state=active"] = 403
    assert [firm["id"] for firm in platform.seen()["firms"]] == ["firm_1"]


def test_one_look_for_programs_is_json_and_a_refusal_has_its_exit_code(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIU_API_URL", platform.url)
    done = CliRunner().invoke(cli.complete_app(), ["top", "--once", "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)) == set(TABLES)
    assert "Riverside Games" in CliRunner().invoke(cli.complete_app(), ["top", "--once"]).stdout
    platform.answers["/api/me"] = 401
    assert CliRunner().invoke(cli.complete_app(), ["top", "--once"]).exit_code == 4
    monkeypatch.setenv("HELIU_API_URL", "http://127.0.0.1:9")
    assert CliRunner().invoke(cli.complete_app(), ["top"]).exit_code == 3
    with pytest.raises(Refused):
        platform.seen()
