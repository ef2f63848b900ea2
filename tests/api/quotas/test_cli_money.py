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
    assert "closing ¥10.349895" in shown and "not closed yet" in shown
    voucher = parsed(heliu("voucher", "list", "--json", who="owner"))[0]["id"]
    assert f"{voucher} paid ¥0.15 of ¥0.30 (50 %)" in shown
    assert "owed ¥0.24" in heliu("statement", "2026-11", "--centre", "optics-valley").stdout
    month = parsed(heliu("statement", "2026-11", "--json", who="owner"))
    assert month["cash_micro_yuan"] == 150_105
    assert all(line["charge_id"] in shown for line in month["lines"])
    checked = heliu("ledger", "verify").stdout
    assert "every invariant holds" in checked and "job_still_running" in checked
    assert "job_still_running" in heliu("ledger", "holds").stdout
    assert "¥19.80" in heliu("voucher", "list", who="owner").stdout, "20 less 0.15 paid and 0.05 on hold"

    heliu("charge", "refund", month["lines"][0]["charge_id"], "--reason", "wrong output")
    assert "wrong output" in heliu("statement", "2026-11", who="owner").stdout
    noted = heliu("statement", "2026-11", who="owner").stdout
    assert f"credit note for {month['lines'][0]['charge_id']}" in noted
    assert parsed(heliu("ledger", "verify", "--json"))["ok"] is True


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


def test_a_programme_s_order_pools_and_begin_are_set_by_the_command(heliu: Heliu, firm_id: str) -> None:
    terms = ["--funder", "市经信局", "--pool", "1000", "--cap", "100", "--until", "2027-12-31T00:00:00+08:00"]
    more = ["--from", "2026-11-02T00:00:00+08:00", "--priority", "7", "--on", POOL, "--covers", "compute"]
    made = parsed(heliu("programme", "create", "早鸟券", *terms, *more, "--share", "33.3333", "--json"))[0]
    assert (made["share_ppm"], made["priority"], made["pools"]) == (333_333, 7, [POOL])
    assert made["valid_from"] == "2026-11-01T16:00:00Z"
    assert f"compute; GPU time of {POOL} only" in " ".join(heliu("programme", "list", COLUMNS="400").stdout.split())
    heliu("programme", "create", "普惠券", *terms, "--share", "100", "--priority", "9")
    for programme in ("普惠券", "早鸟券"):
        listed = parsed(heliu("programme", "list", "--json"))
        heliu("voucher", "grant", next(one["id"] for one in listed if one["name"] == programme), firm_id, "1")
    assert [one["priority"] for one in parsed(heliu("voucher", "list", "--json", who="owner"))] == [7, 9]
    for wrong in ("33.33333", "101", "-1", "half", "NaN"):
        refused = heliu("programme", "create", "x", *terms, "--share", wrong, exit_code=2)
        assert "12.5" in refused.stderr, "it says how a share is written"


def test_a_centre_s_contract_is_signed_and_listed_by_commands(heliu: Heliu, firm_id: str) -> None:
    signed = heliu("centre", "contract", "optics-valley", "82.5", "--reason", "contract 2026-7").stdout
    assert "82.5 %" in signed
    listed = parsed(heliu("centre", "contracts", "optics-valley", "--json"))
    assert [one["payout_ppm"] for one in listed] == [800_000, 825_000]
    assert listed[0]["valid_until"] == listed[1]["valid_from"]
    assert "contract 2026-7" in heliu("audit", "list", "--action", "centre.contract").stdout
    heliu("centre", "contract", "optics-valley", "90", "--reason", "mine", who="owner", exit_code=1)
    heliu("centre", "contracts", "optics-valley", who="owner", exit_code=1)


def test_who_closes_a_firm_reads_what_it_still_has(heliu: Heliu, firm_id: str) -> None:
    heliu("account", "top-up", firm_id, "7", "--evidence", "slip 1")
    closed = heliu("firm", "close", firm_id, "--reason", "dissolved").stdout
    assert "it has ¥7.00; pay it back: heliu account withdraw" in closed
    assert "is closed and gets no more money" in heliu(
        "account", "top-up", firm_id, "1", "--evidence", "slip 2", exit_code=1
    ).stderr.replace("\n", " ")
