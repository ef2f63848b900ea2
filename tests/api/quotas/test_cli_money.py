"""The `heliu` commands of money, against a control plane that really listens: yuan in, yuan out."""

import asyncio
import json
from pathlib import Path

import pytest

from kit.clock import FixedClock
from kit.db import Database
from quotas import api
from quotas.vocabulary import FirmId
from tests.api.quotas import test_cli
from tests.api.quotas.test_cli import PASSWORD, Heliu, apply, claim, parsed
from tests.support.money import POOL, hold, tokens, used

address, admin_token, heliu = test_cli.address, test_cli.admin_token, test_cli.heliu

BOOK = {
    "name": "autumn",
    "gpu": [{"pool": POOL, "micro_yuan_per_gpu_hour": 3_600_000}],
    "tokens": [
        {
            "model": "smollm2-135m-instruct",
            "input_micro_yuan_per_million": 1_000_000,
            "cached_input_micro_yuan_per_million": 250_000,
            "output_micro_yuan_per_million": 2_000_000,
        }
    ],
}


async def _use(database_url: str, clock: FixedClock, firm: FirmId) -> None:
    """A job of 300 slot-seconds that is over, one that holds money, and one request."""
    db = Database(database_url)
    async with db.transaction() as tx:
        held = await hold(tx, firm, now=clock.now(), seconds=400)
        usage = used(firm, start=clock.now(), seconds=300)
        await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())
        await hold(tx, firm, now=clock.now(), seconds=100, subject="job_still_running")
        await api.ingest_tokens(tx, [tokens(firm, 1, at=clock.now())], now=clock.now())
    await db.close()


@pytest.fixture
def firm_id(heliu: Heliu, address: str, admin_token: str) -> str:
    claim(address, admin_token)
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    firm = str(apply(heliu, 1)["id"])
    heliu("firm", "approve", firm)
    heliu("login", "--email", "owner1@anim.example", who="owner", HELIU_PASSWORD=PASSWORD)
    return firm


def test_a_month_by_commands_alone(
    heliu: Heliu, firm_id: str, database_url: str, clock: FixedClock, tmp_path: Path
) -> None:
    book = tmp_path / "book.json"
    book.write_text(json.dumps(BOOK))
    assert "¥3.60" in heliu("tariff", "publish", str(book)).stdout
    terms = ["--funder", "市经信局", "--share", "50", "--pool", "1000", "--cap", "100"]
    made = heliu("programme", "create", "算力券", *terms, "--until", "2027-12-31T00:00:00+08:00", "--json").stdout
    programme = json.loads(made)[0]["id"]
    assert "50 %" in heliu("programme", "list").stdout
    heliu("voucher", "grant", programme, firm_id, "20")
    for _ in range(2):
        heliu("account", "top-up", firm_id, "10.50", "--evidence", "slip 1", "--key", "slip 1")
    assert "¥10.50" in heliu("account", "show", who="owner").stdout
    assert "slip 1" in heliu("account", "payments", who="owner").stdout
    asyncio.run(_use(database_url, clock, FirmId(firm_id)))

    shown = heliu("statement", "2026-11", who="owner").stdout
    assert "300.0 GPU-s" in shown
    assert "80 in, 20 cached, 10 out (1 requests)" in shown
    assert "amount ¥0.300105 = voucher ¥0.15 + cash ¥0.150105" in shown
    assert "closing ¥10.349895" in shown
    assert "owed ¥0.24" in heliu("statement", "2026-11", "--centre", "optics-valley").stdout
    month = parsed(heliu("statement", "2026-11", "--json", who="owner"))
    assert month["cash_micro_yuan"] == 150_105
    checked = heliu("ledger", "verify").stdout
    assert "every invariant holds" in checked and "job_still_running" in checked
    assert "job_still_running" in heliu("ledger", "holds").stdout
    assert "¥19.80" in heliu("voucher", "list", who="owner").stdout, "20 less 0.15 paid and 0.05 on hold"

    heliu("charge", "refund", month["lines"][0]["charge_id"], "--reason", "wrong output")
    assert "wrong output" in heliu("statement", "2026-11", who="owner").stdout
    assert parsed(heliu("ledger", "check", "--json"))["ok"] is True


def test_what_money_refuses_says_why_and_exits_with_one(heliu: Heliu, firm_id: str, tmp_path: Path) -> None:
    refused = heliu("account", "withdraw", firm_id, "1", "--evidence", "slip", exit_code=1)
    assert "¥1.00 is needed and ¥0.00 is available" in refused.stderr
    heliu("account", "top-up", firm_id, "one", "--evidence", "slip", exit_code=2)
    heliu("account", "top-up", firm_id, "1", "--evidence", "slip", who="owner", exit_code=1)
    heliu("ledger", "verify", who="owner", exit_code=1)
    broken = tmp_path / "book.json"
    broken.write_text("{")
    assert "is not JSON" in heliu("tariff", "publish", str(broken), exit_code=2).stderr
    line = heliu("account", "credit-line", firm_id, "5", "--reason", "contract 9").stdout
    assert "¥5.00" in line
