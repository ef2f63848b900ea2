"""The revisions of quotas: one chain, files in the order in which they run, and a way down again."""

from pathlib import Path

import psycopg
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from kit.migrate import configuration, run_migrations
from tests.support.databases import ROOT, TestServer

FOLDER = ROOT / "quotas" / "adapters" / "migrations"


def test_files_are_numbered_in_the_order_in_which_they_run() -> None:
    script = ScriptDirectory.from_config(configuration([FOLDER]))
    [head] = [name for name in script.get_heads() if name.startswith("quotas_")]
    run = [Path(one.path).name for one in script.iterate_revisions(head, "base") if one.path.startswith(str(FOLDER))]
    files = sorted(path.name for path in FOLDER.glob("*.py"))
    assert run[::-1] == files
    assert [name[:4] for name in files] == [f"{number:04}" for number in range(1, len(files) + 1)]


def test_every_revision_goes_down_again_and_up(postgres: TestServer) -> None:
    def tables(url: str) -> set[str]:
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('quotas')")
            return {row[0] for row in found}

    with postgres.empty_database() as url:
        run_migrations(url, [FOLDER])
        made = tables(url)
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
        with engine.begin() as connection:
            config = configuration([FOLDER])
            config.attributes["connection"] = connection
            command.downgrade(config, "quotas@base")
        engine.dispose()
        assert tables(url) == set()
        run_migrations(url, [FOLDER])
        assert tables(url) == made != set()


def test_months_that_were_closed_before_the_log_was_told_are_told_to_it_once(postgres: TestServer) -> None:
    with postgres.empty_database() as url:
        run_migrations(url, [FOLDER])
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
        with engine.begin() as connection:
            config = configuration([FOLDER])
            config.attributes["connection"] = connection
            command.downgrade(config, "quotas_0021")
            connection.exec_driver_sql("""INSERT INTO quotas.statement (firm_id, period, hash, body, closed_at)
                VALUES ('firm_platform', '2026-09', 'abc', '{"closing": 7}', '2026-10-04')""")
            for _ in range(2):
                command.upgrade(config, "quotas@head")
                command.downgrade(config, "quotas_0021")
            told = connection.exec_driver_sql("""SELECT actor_id, subject, firm_id, after
                FROM quotas.audit_entry WHERE action = 'statement.close'""").all()
        engine.dispose()
    told_of = {"hash": "abc", "closing_micro_yuan": 7}
    assert [tuple(row) for row in told] == [("system", "firm_platform 2026-09", "firm_platform", told_of)]
