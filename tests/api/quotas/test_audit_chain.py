"""The audit log's chain: sealed after commit, verified, exported in a form that anybody can check."""

import csv
import hashlib
import io
import json
from pathlib import Path

import pytest
from sqlalchemy import text

from kit.clock import FixedClock
from kit.db import Database
from quotas.audit_chain import seal_audit, verify_audit
from tests.api.quotas.conftest import World

CHAINED = ("audit_entry", "audit_block")


async def rewrite(db: Database, statement: str) -> None:
    """What somebody with every right on the database could do."""
    async with db.transaction() as tx:
        for table in CHAINED:
            await tx.execute(text(f"ALTER TABLE quotas.{table} DISABLE TRIGGER USER"))
        await tx.execute(text(statement))


async def sealed(world: World, db: Database, clock: FixedClock, heads: Path) -> None:
    """Two blocks with entries of two firms."""
    await world.studio()
    assert await seal_audit(db, clock.now(), heads) == 1
    await world.studio()
    assert await seal_audit(db, clock.now(), heads) == 1


async def test_entries_are_sealed_once_and_the_chain_holds(
    world: World, db: Database, clock: FixedClock, tmp_path: Path
) -> None:
    heads = tmp_path / "heads.jsonl"
    await sealed(world, db, clock, heads)
    assert await seal_audit(db, clock.now(), heads) == 0
    async with db.transaction() as tx:
        report = await verify_audit(tx, heads)
    entries = (await world.admin.get("/api/audit", params={"limit": 500})).json()
    assert (report.findings, report.entries, report.unsealed, report.blocks) == ((), len(entries), 0, 2)
    assert [json.loads(line)["number"] for line in heads.read_text().splitlines()] == [1, 2]
    await world.studio()
    async with db.transaction() as tx:
        assert (await verify_audit(tx, heads)).unsealed > 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE quotas.audit_entry SET reason = 'it was not me' WHERE seq = (SELECT min(seq) FROM quotas.audit_entry)",
        "UPDATE quotas.audit_entry SET after = '{}' WHERE action = 'firm.apply'",
        "DELETE FROM quotas.audit_entry WHERE action = 'firm.approve'",
        """INSERT INTO quotas.audit_entry (xid, at, actor_kind, actor_id, action, subject)
            SELECT xid, at, 'member', 'mem_x', 'quota.set', 'firm_x' FROM quotas.audit_entry ORDER BY seq LIMIT 1""",
        "DELETE FROM quotas.audit_block WHERE number = 1",
        "DELETE FROM quotas.audit_block WHERE number = 2",
        "UPDATE quotas.audit_block SET hash = previous WHERE number = 2",
    ],
)
async def test_whatever_is_rewritten_afterwards_is_found(
    world: World, db: Database, clock: FixedClock, tmp_path: Path, statement: str
) -> None:
    heads = tmp_path / "heads.jsonl"
    await sealed(world, db, clock, heads)
    await rewrite(db, statement)
    async with db.transaction() as tx:
        assert (await verify_audit(tx, heads)).findings


async def test_a_chain_that_was_made_anew_does_not_match_the_heads_outside(
    world: World, db: Database, clock: FixedClock, tmp_path: Path
) -> None:
    heads = tmp_path / "heads.jsonl"
    await sealed(world, db, clock, heads)
    await rewrite(db, "UPDATE quotas.audit_entry SET reason = 'it was not me' WHERE action = 'firm.approve'")
    await rewrite(db, "DELETE FROM quotas.audit_block")
    await seal_audit(db, clock.now())
    async with db.transaction() as tx:
        assert (await verify_audit(tx)).findings == ()
        assert (await verify_audit(tx, heads)).findings


async def test_an_export_can_be_checked_with_nothing_but_sha256(
    world: World, db: Database, clock: FixedClock, tmp_path: Path
) -> None:
    await sealed(world, db, clock, tmp_path / "heads.jsonl")
    lines = (await world.admin.get("/api/audit/export")).text.splitlines()
    blocks = (await world.admin.get("/api/audit/blocks")).json()
    head, at = bytes(32), 0
    for block in blocks:
        covered = lines[at : at + block["entries"]]
        at += block["entries"]
        head = hashlib.sha256(head + "\n".join(covered).encode()).digest()
        assert head.hex() == block["hash"]
    assert at == len(lines)


async def test_the_log_is_exported_for_a_spreadsheet_without_formulas(world: World) -> None:
    studio = await world.studio()
    body = {"step": "suspend", "reason": '=HYPERLINK("http://evil")'}
    await world.admin.post(f"/api/firms/{studio.firm_id}/review", json=body)
    answer = await world.admin.get("/api/audit/export", params={"format": "csv", "firm_id": studio.firm_id})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["action"] for row in rows] == ["firm.apply", "firm.approve", "session.begin", "firm.suspend"]
    assert rows[-1]["reason"].startswith("'=HYPERLINK")
    assert json.loads(rows[0]["after"])["name"].startswith("汉江")


async def test_a_firm_exports_its_own_log_and_only_auditors_prove_the_whole(world: World) -> None:
    one, other = await world.studio(), await world.studio()
    lines = (await one.owner.get("/api/audit/export")).text.splitlines()
    assert {json.loads(line)["firm_id"] for line in lines} == {one.firm_id}
    assert (await one.owner.get("/api/audit/export", params={"firm_id": other.firm_id})).status_code == 404
    for path in ("/api/audit/verify", "/api/audit/blocks"):
        assert (await one.owner.get(path)).status_code == 403
        auditor_sees = await world.admin.get(path)
        assert auditor_sees.status_code == 200, auditor_sees.text
