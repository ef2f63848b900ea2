"""The `heliu` commands of prices, usage and documents, against a control plane that really listens."""

import json
from pathlib import Path

import pytest

from tests.api.quotas import test_cli
from tests.api.quotas.test_cli import PASSWORD, Heliu, apply, claim, parsed
from tests.support.money import POOL

address, admin_token, heliu = test_cli.address, test_cli.admin_token, test_cli.heliu

BOOK = {"name": "autumn", "valid_from": "2026-10-01T00:00:00+08:00", "gpu": [
    {"pool": POOL, "micro_yuan_per_gpu_hour": 3_600_000}],
    "images": [{"model": "draw", "micro_yuan_per_image": 1_000}]}  # fmt: skip
JOBS = """JobID|Account|Partition|State|Start|End|AllocTRES
7|studio|slots|COMPLETED|2026-10-31T23:30:00|2026-11-01T00:00:00|gres/gpu=1
7.batch|studio|slots|COMPLETED|2026-10-31T23:30:00|2026-11-01T00:00:00|
"""


@pytest.fixture(autouse=True)
def _blobs_of_this_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HELIU_BLOB_URL", f"file://{tmp_path / 'blobs'}")


def test_a_cluster_s_jobs_a_preview_a_discount_and_a_licence_by_commands_alone(
    heliu: Heliu, address: str, admin_token: str, tmp_path: Path
) -> None:
    claim(address, admin_token)
    heliu("login", "--email", "admin@heliu.example", HELIU_PASSWORD=PASSWORD)
    firm = str(apply(heliu, 1)["id"])
    heliu("login", "--email", "owner1@anim.example", who="owner", HELIU_PASSWORD=PASSWORD)
    licence, copy = tmp_path / "licence.pdf", tmp_path / "copy.pdf"
    licence.write_bytes(b"%PDF-1.7 licence")
    made = parsed(heliu("document", "add", str(licence), "--kind", "business_licence", "--json", who="owner"))
    assert made["sha256"] in heliu("document", "list", "--firm", firm).stdout
    heliu("document", "get", made["id"], str(copy))
    assert copy.read_bytes() == licence.read_bytes()
    heliu("firm", "approve", firm)

    book, jobs = tmp_path / "book.json", tmp_path / "jobs.txt"
    book.write_text(json.dumps(BOOK))
    heliu("tariff", "publish", str(book))
    heliu("account", "top-up", firm, "10", "--evidence", "slip 1")
    jobs.write_text(JOBS)
    words = ["usage", "import", str(jobs), "--source", "wuhan-1", "--account", f"studio={firm}"]
    words += ["--partition", f"slots={POOL}"]
    assert "would import 1 jobs" in heliu(*words, "--dry-run").stdout
    done = heliu(*words).stdout
    assert "imported 1 jobs, 0 known before, skipped: 1 step" in done and "cash ¥1.80" in done
    assert "imported 0 jobs, 1 known before" in heliu(*words).stdout
    jobs.write_text(JOBS.replace("|2026-11-01T00:00:00|gres", "|soon|gres"))
    assert "line 2: End 'soon' is no time" in heliu(*words, exit_code=1).stderr
    heliu("usage", "import", str(jobs), "--source", "a", "--account", "x", "--partition", "a=b", exit_code=2)

    events = tmp_path / "events.jsonl"
    project = parsed(heliu("project", "list", "--json", who="owner"))[0]["id"]
    who = {"firm_id": firm, "project_id": project, "model": "dear"}
    one = {"specversion": "1.0", "source": "/studio/7", "type": "heliu.usage.images.v1"}
    made = [one | {"id": f"e{n}", "time": "2026-11-01T10:00:00+08:00", "data": who | {"images": 2}} for n in range(501)]
    events.write_text("\n".join(json.dumps(event) for event in made))
    unpriced = heliu("usage", "events", str(events), exit_code=1).stderr
    assert "no tariff prices images of dear" in " ".join(unpriced.split())
    made = [event | {"data": event["data"] | {"model": "draw"}} for event in made]
    events.write_text(json.dumps(made))
    key = parsed(heliu("key", "issue", "farm", "--scope", "usage:ingest", "--json"))["token"]
    sent = heliu("usage", "events", str(events), who="nobody", HELIU_TOKEN=key).stdout
    assert "events 1 to 500: 500 taken, 0 known" in sent and "events 501 to 501: 1 taken" in sent
    again = parsed(heliu("usage", "events", str(events), "--json", who="nobody", HELIU_TOKEN=key))
    assert again == {"accepted": 0, "duplicates": 501}
    events.write_text('{"id": 1}\n{')
    assert "line 2" in heliu("usage", "events", str(events), exit_code=2).stderr

    book.write_text(json.dumps(BOOK | {"gpu": [{"pool": POOL, "micro_yuan_per_gpu_hour": 5_000_000}]}))
    assert "in all ¥1.80, with the draft ¥2.50" in heliu("tariff", "preview", str(book)).stdout
    assert parsed(heliu("tariff", "preview", str(book), "--month", "2026-09", "--json"))["lines"] == []
    waits = heliu("discount", "grant", firm, "compute", "--off", "12.5", "--contract", "合同 3").stdout
    assert "waits for a second administrator" in waits
    assert parsed(heliu("discount", "list", "--json", who="owner")) == []
    assert "There is no discount" in heliu("discount", "end", "dsc_none", exit_code=1).stderr
