"""The `heliu` commands of firms and people, against a control plane that really listens."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from kit.clock import FixedClock
from kit.db import Database
from kit.settings import Settings
from kit.web import create_app
from quotas.cli import app as commands
from quotas.main import routers
from quotas.members import issue_admin_link
from tests.api.quotas.conftest import PASSWORD, uscc
from tests.support.until import until

Heliu = Callable[..., Any]


@pytest.fixture
def admin_token(database_url: str, clock: FixedClock) -> str:
    async def issue() -> str:
        db = Database(database_url)
        async with db.transaction() as tx:
            token = await issue_admin_link(tx, clock.now())
        await db.close()
        return token

    return asyncio.run(issue())


@pytest.fixture
def address(database_url: str, clock: FixedClock) -> Iterator[str]:
    """A control plane that listens on a port of its own."""
    db = Database(database_url)
    app = create_app("test", "0", routers(db, clock, Settings()), body_limit_bytes=1 << 20)
    app.state.db, app.state.clock = db, clock
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))

    async def serve() -> None:
        await server.serve()
        await db.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        until(lambda: server.started, seconds=20, what="the server listens")
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def heliu(address: str, tmp_path: Path) -> Heliu:
    """Run a command as one of several people, each with a home of their own."""
    runner = CliRunner()

    def run(*words: str, who: str = "admin", exit_code: int = 0, **environment: str) -> Any:
        env = {"HELIU_API_URL": address, "HELIU_HOME": str(tmp_path / who), "COLUMNS": "200", **environment}
        result = runner.invoke(commands, list(words), env=env)
        assert result.exit_code == exit_code, result.output
        return result

    return run


def parsed(result: Any) -> Any:
    return json.loads(result.stdout)


def claim(address: str, token: str) -> None:
    body = {"token": token, "email": "admin@heliu.example", "password": PASSWORD}
    assert httpx.post(f"{address}/api/admin/claim", json=body).status_code == 201


def apply(heliu: Heliu, number: int) -> Any:
    words = [
        "firm", "apply", "--uscc", uscc(number), "--name", "江城动画", "--cluster", "网络视听", "--district", "江岸区",
        "--contact-name", "周", "--contact-email", "c@anim.example", "--owner-name", "周", "--owner-email",
        f"owner{number}@anim.example", "--json",
    ]  # fmt: skip
    return parsed(heliu(*words, who="owner", HELIU_PASSWORD=PASSWORD))


def test_a_firm_comes_in_and_issues_a_key_by_commands_alone(heliu: Heliu, address: str, admin_token: str) -> None:
    claim(address, admin_token)
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    firm = apply(heliu, 1)
    assert firm["industry_cluster"] == "online_audiovisual"
    assert firm["id"] in heliu("firm", "queue").stdout
    heliu("firm", "approve", firm["id"])

    heliu("login", "--email", "owner1@anim.example", who="owner", HELIU_PASSWORD=PASSWORD)
    assert "江城动画" in heliu("whoami", who="owner").stdout
    made = parsed(heliu("key", "issue", "farm", "--scope", "inference", "--scope", "jobs:read", "--json", who="owner"))
    assert made["token"].startswith("hl_") and made["key"]["scopes"] == ["inference", "jobs:read"]
    shown = heliu("key", "issue", "second", "--scope", "inference", who="owner").stdout
    assert "hl_" in shown
    listed = heliu("key", "list", who="owner").stdout
    assert "farm" in listed and "hl_" not in listed
    me = parsed(heliu("whoami", "--json", who="owner", HELIU_TOKEN=made["token"]))
    assert (me["kind"], me["scopes"]) == ("api_key", ["inference", "jobs:read"])

    rotated = parsed(heliu("key", "rotate", made["key"]["id"], "--overlap-seconds", "0", "--json", who="owner"))
    heliu("whoami", who="owner", exit_code=4, HELIU_TOKEN=made["token"])
    heliu("key", "revoke", rotated["key"]["id"], "--reason", "lost", who="owner")
    assert parsed(heliu("project", "create", "流浪", "--json", who="owner"))["name"] == "流浪"
    heliu("logout", who="owner")
    heliu("whoami", who="owner", exit_code=4)


def test_an_invited_member_joins_by_command(heliu: Heliu, address: str, admin_token: str) -> None:
    claim(address, admin_token)
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    heliu("firm", "approve", apply(heliu, 1)["id"])
    heliu("login", "--email", "owner1@anim.example", who="owner", HELIU_PASSWORD=PASSWORD)
    made = parsed(heliu("member", "invite", "dev@anim.example", "--role", "firm_developer", "--json", who="owner"))
    heliu("member", "accept", made["token"], "--name", "陈晨", who="dev", HELIU_PASSWORD=PASSWORD)
    assert "dev@anim.example" in heliu("member", "list", who="owner").stdout
    refused = heliu("key", "issue", "mine", "--scope", "inference", who="dev", exit_code=1)
    assert "firm_owner" in refused.stderr
    me = parsed(heliu("whoami", "--json", who="dev"))
    heliu("member", "remove", me["id"], who="owner")
    heliu("whoami", who="dev", exit_code=4)


def test_quotas_are_set_in_gpus_and_kept_in_thousandths(heliu: Heliu, address: str, admin_token: str) -> None:
    claim(address, admin_token)
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    firm = apply(heliu, 1)["id"]
    heliu("firm", "approve", firm)
    heliu("quota", "set", firm, "optics-valley/cpu-slot", "2.5", "--reason", "season")
    rows = parsed(heliu("quota", "list", "--json"))
    assert [row["nominal_gpu_milli"] for row in rows] == [2500]
    assert "2.5" in heliu("quota", "history", "--firm", firm).stdout
    for wrong in ("two", "0.0001", "nan", "1e999"):
        heliu("quota", "set", firm, "optics-valley/cpu-slot", wrong, exit_code=2)
    heliu("quota", "set", firm, "optics-valley/cpu-slot", "1e9", exit_code=1)
    assert "quota.set" in heliu("audit", "list", "--firm", firm).stdout
    heliu("firm", "suspend", firm, "--reason", "unpaid")
    assert parsed(heliu("firm", "list", "--state", "suspended", "--json"))[0]["state_reason"] == "unpaid"


def test_a_request_for_quota_goes_to_and_fro_by_command(heliu: Heliu, address: str, admin_token: str) -> None:
    claim(address, admin_token)
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    heliu("firm", "approve", apply(heliu, 1)["id"])
    heliu("login", "--email", "owner1@anim.example", who="owner", HELIU_PASSWORD=PASSWORD)
    pool = "optics-valley/cpu-slot"
    asked = parsed(heliu("quota", "ask", pool, "4", "--reason", "a film", "--json", who="owner"))
    assert asked["id"] in heliu("quota", "requests", "--state", "open").stdout
    words = ["--gpus", "1.5", "--condition", "at night", "--reason", "the pool is full", "--borrowing", "1"]
    assert "at night" in heliu("quota", "grant", asked["id"], *words).stdout
    row = parsed(heliu("quota", "list", "--json", who="owner"))[0]
    assert (row["nominal_gpu_milli"], row["borrowing_gpu_milli"]) == (1500, 1000)
    again = parsed(heliu("quota", "ask", pool, "4", "--reason", "a film", "--json", who="owner"))
    heliu("quota", "refuse", again["id"], "--reason", "still full")
    last = parsed(heliu("quota", "ask", pool, "4", "--reason", "a film", "--json", who="owner"))
    assert "withdrawn" in heliu("quota", "withdraw", last["id"], who="owner").stdout


def test_the_tree_of_cohorts_is_built_and_shown_by_command(heliu: Heliu, address: str, admin_token: str) -> None:
    claim(address, admin_token)
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    heliu("cohort", "place", "city")
    heliu("cohort", "place", "games", "--parent", "city", "--weight", "1.5")
    assert "weight 1.5" in heliu("cohort", "tree").stdout
    refused = heliu("cohort", "place", "city", "--parent", "games", exit_code=1)
    assert "city → games" in refused.stderr or "above itself" in refused.stderr


def test_a_platform_that_is_not_there_is_exit_code_three(heliu: Heliu) -> None:
    heliu("whoami", exit_code=3, HELIU_API_URL="http://127.0.0.1:9")


def test_the_audit_log_is_proved_and_taken_away_by_command(
    heliu: Heliu, address: str, admin_token: str, tmp_path: Path
) -> None:
    claim(address, admin_token)
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    assert "all is as it was written" in heliu("audit", "verify").stdout
    assert parsed(heliu("audit", "verify", "--json"))["findings"] == []
    exported = [json.loads(line) for line in heliu("audit", "export").stdout.splitlines()]
    assert [one["seq"] for one in exported] == sorted(one["seq"] for one in exported)
    file = tmp_path / "audit.csv"
    heliu("audit", "export", "--format", "csv", "--out", str(file))
    assert file.read_text().splitlines()[0].startswith("seq,at,actor_kind")


def test_a_large_sum_waits_for_a_second_administrator_by_command(heliu: Heliu, address: str, admin_token: str) -> None:
    claim(address, admin_token)
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    firm = apply(heliu, 1)
    said = heliu("account", "top-up", firm["id"], "100001", "--evidence", "slip 7").stdout
    proposal = parsed(heliu("approval", "list", "--state", "open", "--json"))[0]
    assert f"heliu approval approve {proposal['id']}" in said
    heliu("approval", "approve", proposal["id"], exit_code=1)
    heliu("approval", "refuse", proposal["id"], "--reason", "typing error")
    assert "¥50.00" in heliu("approval", "policy", "--amount", "50", "--reason", "audit").stdout


def test_limits_and_budgets_are_kept_by_command(heliu: Heliu, address: str, admin_token: str) -> None:
    claim(address, admin_token)
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    firm = apply(heliu, 1)["id"]
    heliu("firm", "approve", firm)
    heliu("limit", "set", firm, "--gpus", "2.5", "--jobs", "3", "--gpu-hours", "10", "--tokens", "1000")
    seen = parsed(heliu("limit", "show", "--firm", firm, "--json"))["effective"]
    assert seen == {
        "gpu_milli_at_once": 2500,
        "jobs_at_once": 3,
        "gpu_ms_per_period": 36_000_000,
        "tokens_per_period": 1000,
    }
    assert "2.5" in heliu("limit", "show", "--firm", firm).stdout
    assert len(parsed(heliu("limit", "history", "--firm", firm, "--json"))) == 1
    budget = parsed(heliu("budget", "set", "12.50", "--hard-stop", "--firm", firm, "--json"))[0]
    assert "¥12.50" in heliu("budget", "list", "--firm", firm).stdout
    heliu("budget", "end", budget["id"])
    assert "whsec_" in heliu("alert", "to", "webhook", "https://hooks.example/x", "--firm", firm).stdout
    assert "hooks.example" in heliu("alert", "channels", "--firm", firm).stdout
    assert "nothing yet" in heliu("alert", "list", "--firm", firm).stdout
