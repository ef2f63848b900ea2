from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from kit.migrate import run_migrations
from tests.support.databases import TestServer, migration_folders

REVISION = """
from alembic import op
revision = "{name}_0001"
down_revision = None
branch_labels = ("{name}",)
depends_on = {depends_on!r}
def upgrade():
    op.execute("{statement}")
"""


def package(folder: Path, name: str, statement: str, depends_on: str | None = "kit_0001") -> Path:
    folder = folder / name
    folder.mkdir()
    (folder / "0001_first.py").write_text(REVISION.format(name=name, statement=statement, depends_on=depends_on))
    return folder


def versions(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT version_num FROM alembic_version")}


def test_every_package_is_brought_to_its_newest_revision(postgres: TestServer, tmp_path: Path) -> None:
    a = package(tmp_path, "a", "CREATE TABLE a (n int)", depends_on="b_0001")
    b = package(tmp_path, "b", "CREATE TABLE b (n int)")
    with postgres.empty_database() as url:
        run_migrations(url, [a, b])
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM kit.event").fetchone() == (0,)
            assert connection.execute("SELECT count(*) FROM a, b").fetchone() == (0,)
        assert "a_0001" in versions(url)


def test_migrating_again_changes_nothing_and_a_new_package_joins(postgres: TestServer, tmp_path: Path) -> None:
    a = package(tmp_path, "a", "CREATE TABLE a (n int)")
    with postgres.empty_database() as url:
        run_migrations(url, [a])
        run_migrations(url, [a])
        run_migrations(url, [a, package(tmp_path, "b", "CREATE TABLE b (n int)")])
        assert {"a_0001", "b_0001"} <= versions(url)


def test_of_two_callers_at_once_one_migrates_and_one_waits(postgres: TestServer, tmp_path: Path) -> None:
    a = package(tmp_path, "a", "CREATE TABLE a (n int); SELECT pg_sleep(0.2)")
    with postgres.empty_database() as url:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: run_migrations(url, [a]), range(3)))
        assert "a_0001" in versions(url)


def test_a_migration_that_fails_leaves_the_database_as_it_was(postgres: TestServer, tmp_path: Path) -> None:
    broken = package(tmp_path, "a", "CREATE TABLE a (n int); SELECT 1 / 0")
    with postgres.empty_database() as url:
        with pytest.raises(Exception, match="division by zero"):
            run_migrations(url, [broken])
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT to_regclass('a'), to_regclass('kit.event')").fetchone() == (None, None)


def test_the_packages_migrations_run_on_an_empty_database_twice(postgres: TestServer) -> None:
    with postgres.empty_database() as url:
        run_migrations(url, migration_folders())
        before = versions(url)
        run_migrations(url, migration_folders())
        assert versions(url) == before != set()
