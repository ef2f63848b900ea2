"""Discounts, previews and imports of usage by `heliu.Client`, against a control plane that really listens."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from heliu import ApiError, AwaitsApproval, Client
from tests.api.quotas import test_cli
from tests.api.quotas.test_cli import PASSWORD, Heliu, apply, claim
from tests.api.quotas.test_cli_usage import BOOK, JOBS
from tests.support.money import POOL

address, admin_token, heliu = test_cli.address, test_cli.admin_token, test_cli.heliu


def test_a_program_imports_a_cluster_previews_a_book_and_reads_discounts(
    heliu: Heliu, address: str, admin_token: str, tmp_path: Path
) -> None:
    claim(address, admin_token)
    firm = str(apply(heliu, 1)["id"])
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    heliu("firm", "approve", firm)
    jobs, book = tmp_path / "jobs.txt", tmp_path / "book.json"
    jobs.write_text(JOBS)
    book.write_text(json.dumps(BOOK))
    heliu("tariff", "publish", str(book))
    with Client(address) as anonymous:
        admin = anonymous.acting_as(anonymous.sessions.sign_in("admin@heliu.example", PASSWORD).token)
        draft = {"name": "dearer", "gpu": [{"pool": POOL, "micro_yuan_per_gpu_hour": 5_000_000}]}
        terms = {"source": "wuhan-1", "accounts": {"studio": firm}, "partitions": {"slots": POOL}}
        assert admin.usage.import_slurm(jobs, **terms, dry_run=True).imported == 1
        done = admin.usage.import_slurm(jobs, **terms)
        assert (done.imported, done.skipped, done.amount_micro_yuan) == (1, {"step": 1}, 0)
        assert done.loss_micro_yuan == 1_800_000
        assert admin.usage.import_slurm(jobs, **terms).duplicates == 1
        seen = admin.tariffs.preview(draft, firm_id=firm)
        assert (seen.period, seen.now_micro_yuan, seen.draft_micro_yuan) == ("2026-10", 1_800_000, 2_500_000)
        with pytest.raises(AwaitsApproval):
            admin.discounts.grant(firm, "compute", off_ppm=125_000, contract="no. 3")
        assert admin.discounts.list(firm) == []
        [project] = json.loads(heliu("project", "list", "--firm", firm, "--json").stdout)
        event = {
            "specversion": "1.0", "id": "e1", "source": "/studio/7", "type": "heliu.usage.images.v1",
            "time": datetime(2026, 11, 1, 2, tzinfo=UTC),
            "data": {"firm_id": firm, "project_id": project["id"], "model": "draw", "images": 2},
        }  # fmt: skip
        admin.money.top_up(firm, 5_000, evidence="slip 1")
        assert [admin.usage.send([event]).accepted for _ in range(2)] == [1, 0]
        drawn = next(line for line in admin.money.statement("2026-11", firm).lines if line.kind == "images")
        assert (drawn.amount_micro_yuan, drawn.loss_micro_yuan, drawn.reverses) == (2_000, 0, None)
        note = admin.money.refund(drawn.charge_id, reason="blank pages")
        assert note.cash_micro_yuan == -2_000
        admin.money.withdraw(firm, 5_000, evidence="slip 2")
        assert admin.money.set_credit_line(firm, 9, reason="postpaid").available_micro_yuan == 9
        assert admin.money.sign_contract("optics-valley", 825_000, reason="contract 7").payout_ppm == 825_000
        assert [one.payout_ppm for one in admin.money.contracts("optics-valley")] == [800_000, 825_000]
        with pytest.raises(ApiError, match="no discount"):
            admin.discounts.end("dsc_none")
