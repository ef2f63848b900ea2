"""docs/finance.md is what the commands really print: one month of one firm, from its first yuan to its close.

`HELIU_REWRITE=1 pytest tests/api/quotas/test_finance_walk.py` writes it anew. Ids and the spaces that line up columns
may differ from run to run; everything else must be the same.
"""

import asyncio
import json
import re
import shlex
import socket
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kit.clock import FixedClock
from kit.db import Database
from kit.settings import Settings
from quotas import api
from quotas.alert_delivery import deliver
from quotas.alerts import signature
from quotas.budgets import watch_budgets
from quotas.ledger_service import sweep
from quotas.main import HEADS, alert_sender
from quotas.vocabulary import FirmId
from tests.api.quotas import test_cli, test_cli_money
from tests.api.quotas.test_budgets import Hook
from tests.api.quotas.test_cli import PASSWORD, Heliu
from tests.support.money import hold, tokens, used
from tests.support.walks import Page

address, admin_token, heliu = test_cli.address, test_cli.admin_token, test_cli.heliu
firm_id = test_cli_money.firm_id


@dataclass
class Walk:
    """What was typed and what came back."""

    heliu: Heliu
    lines: list[str] = field(default_factory=list[str])

    def say(self, text: str) -> None:
        self.lines.append(f"# {text}")

    def run(self, command: str, *, who: str = "owner", quiet: bool = False) -> str:
        printed = self.heliu(*shlex.split(command), who=who, COLUMNS="150").stdout
        if not quiet:
            shown = [line.rstrip() for line in printed.splitlines() if line.strip()]
            self.lines += [f"$ heliu {command}", *shown]
        return printed

    def json(self, command: str, *, who: str = "owner") -> list[dict[str, Any]]:
        answer = json.loads(self.run(f"{command} --json", who=who, quiet=True))
        return answer if isinstance(answer, list) else [answer]


async def _use(database_url: str, clock: FixedClock, firm: FirmId) -> None:
    """A fine-tune of ten minutes that was held for fifteen, and forty requests."""
    db = Database(database_url)
    async with db.transaction() as tx:
        held = await hold(tx, firm, now=clock.now(), seconds=900, subject="job_lantern_lore")
        usage = used(firm, start=clock.now(), seconds=600, subject="job_lantern_lore")
        clock.advance(timedelta(minutes=15))
        await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())
        await api.ingest_tokens(tx, [tokens(firm, n, at=clock.now()) for n in range(40)], now=clock.now())
    await db.close()


async def _alert(database_url: str, clock: FixedClock, port: int, secret: str) -> str:
    """The platform's watcher raises what is due; the firm's own program gets it and checks who sent it."""
    db, hook = Database(database_url), Hook()
    async with await asyncio.start_server(hook.answer, "127.0.0.1", port):
        assert await watch_budgets(db, clock.now()) == 1
        assert await deliver(db, alert_sender(Settings()), clock.now()) == 1
    await db.close()
    headers, body = hook.came[0]
    made = signature(secret, headers["webhook-id"], int(headers["webhook-timestamp"]), body)
    assert made == headers["webhook-signature"], "the secret that the command showed signs what arrives"
    return body.decode()


async def _sweep(database_url: str, clock: FixedClock, heads: Path) -> None:
    db = Database(database_url)
    await sweep(db, clock.now(), heads, months=True)
    await db.close()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIU_WEBHOOK_PRIVATE_OK", "1")
    monkeypatch.setenv("HELIU_HOME", str(tmp_path / "home"))


def test_the_readmes_month_is_what_the_commands_print(
    heliu: Heliu, firm_id: str, database_url: str, clock: FixedClock, tmp_path: Path
) -> None:
    walk = Walk(heliu)
    book = tmp_path / "book.json"
    book.write_text(json.dumps(test_cli_money.BOOK))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    walk.say("the platform: a price book, a programme of the city, the firm's voucher and its bank transfer")
    walk.run(f"tariff publish {book}", who="admin")
    programme = walk.json(
        "programme create 算力券 --funder 市经信局 --share 50 --pool 1000 --cap 100 --until 2027-12-31T00:00:00+08:00",
        who="admin",
    )[0]["id"]
    walk.run(f"voucher grant {programme} {firm_id} 20", who="admin")
    walk.run(f"account top-up {firm_id} 100 --evidence 'bank slip 2026-11-02/17'", who="admin")
    walk.say("the firm: a budget that stops at one yuan, and a webhook that hears of it at half")
    walk.run("budget set 1 --at 50 --hard-stop")
    secret = str(walk.json(f"alert to webhook http://127.0.0.1:{port}/heliu")[0]["secret"])
    asyncio.run(_use(database_url, clock, FirmId(firm_id)))
    walk.say("a fine-tune of ten minutes and forty requests later; what the webhook got, signed by its secret:")
    walk.lines.append(asyncio.run(_alert(database_url, clock, port, secret)))
    walk.run("alert list")
    walk.run("statement 2026-11")
    walk.run("ledger verify", who="admin")
    walk.say("three days into December the sweeper closes the month: its lines and its hash stand for ever")
    clock.advance(timedelta(days=32))
    asyncio.run(_sweep(database_url, clock, tmp_path / "home" / HEADS))
    for who, email in (("admin", "admin@heliu.example"), ("owner", "owner1@anim.example")):
        heliu("login", "--email", email, who=who, HELIU_PASSWORD=PASSWORD)
    closed = walk.json("statement 2026-11")[0]
    assert closed["state"] == "closed"
    walk.run("statement 2026-11")
    walk.run("ledger verify", who="admin")
    walk.say("what was wrong is given back by a credit note in the open month")
    job = next(line for line in closed["lines"] if line["subject"] == "job_lantern_lore")
    walk.run(f"charge refund {job['charge_id']} --reason 'the checkpoint was lost'", who="admin")
    walk.run("statement 2026-12")
    walk.run("account show")
    asyncio.run(_sweep(database_url, clock, tmp_path / "home" / HEADS))
    walk.run("ledger verify", who="admin")

    written = "".join(f"{line}\n" for line in walk.lines).replace(str(book), "book.json").replace(f":{port}", ":9000")
    PAGE.holds(written)


def test_what_the_readme_quotes_stands_in_the_walk() -> None:
    walk = PAGE.walk().splitlines()
    for quoted in PAGE.quoted():
        lines = iter(walk)
        assert [line for line in quoted.splitlines() if line not in lines] == [], "in this order"
        assert "closed 2026-12-" in quoted, "it is the closed month that they quote"


def _quote(walk: str) -> str:
    """The sums of the closed month and the proof of the ledger."""
    closed = walk[walk.index(" (closed)") :]
    sums = re.findall(r"^(?:amount|opening|closed) .*$", closed, re.MULTILINE)[:3]
    proof = closed[closed.index("$ heliu ledger verify") :].splitlines()[:4]
    return "".join(f"{line}\n" for line in ["$ heliu statement 2026-11", *sums, *proof])


PAGE = Page("finance", re.compile(r"\b([a-z]{3,6})_[0-9a-z]{20,}|\b[0-9a-f]{64}\b"), _quote)
