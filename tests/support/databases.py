"""One real PostgreSQL for a test session; every test gets a database of its own, copied from a migrated template."""

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import Database
from kit.ids import new_id
from kit.migrate import run_migrations
from kit.postgres import start_embedded, stop_embedded

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("quotas", "scheduler", "serving")
TEMPLATE = "heliu_template"


class TestServer:
    """A running embedded server with a migrated template database."""

    __test__ = False

    def __init__(self, url: str) -> None:
        self.admin_url = url
        self._admin = psycopg.connect(url, autocommit=True)
        # Durability is the server's promise to production; tests never pull the plug on this one.
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            self._execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
        self._execute(sql.SQL("SELECT pg_reload_conf()"))
        self._execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        run_migrations(self._url(TEMPLATE), migration_folders())

    def close(self) -> None:
        """Let go of the server."""
        self._admin.close()

    @contextmanager
    def database(self) -> Iterator[str]:
        """URL of a fresh migrated database, dropped afterwards."""
        with self._database(TEMPLATE) as url:
            yield url

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """URL of a fresh database without any table, dropped afterwards."""
        with self._database("template1") as url:
            yield url

    @contextmanager
    def _database(self, template: str) -> Iterator[str]:
        name = new_id("test")
        # Copying files costs half of what copying pages through the log does; its checkpoints are free without fsync.
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        self._execute(copy.format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield self._url(name)
        finally:
            self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _url(self, name: str) -> str:
        return urlunsplit(urlsplit(self.admin_url)._replace(path=f"/{name}"))

    def _execute(self, statement: sql.SQL | sql.Composed) -> None:
        self._admin.execute(statement)


def migration_folders() -> list[Path]:
    """The revisions of every package that has tables."""
    folders = (ROOT / package / "adapters" / "migrations" for package in PACKAGES)
    return [folder for folder in folders if folder.is_dir()]


@contextmanager
def running_server() -> Iterator[TestServer]:
    """An embedded server in a folder of its own, stopped and removed afterwards."""
    # Not pytest's own temporary folder: run as root, the server is another user and must be able to walk there.
    folder = Path(tempfile.mkdtemp(prefix="heliu-test-"))
    folder.chmod(0o755)
    data = folder / "postgres"
    try:
        with closing(TestServer(start_embedded(data))) as server:
            yield server
    finally:
        stop_embedded(data)
        shutil.rmtree(folder)


async def roll_back(db: Database, work: Callable[[AsyncSession], Awaitable[None]]) -> None:
    """Do `work` in a transaction that then fails."""

    async def failing() -> None:
        async with db.transaction() as tx:
            await work(tx)
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        await failing()
