import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kit.postgres import embedded_pid, start_embedded, stop_embedded
from tests.support.until import until


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a server of this test's own may live; run as root it is another user and must be able to walk there."""
    parent = Path(tempfile.mkdtemp(prefix="heliu-test-"))
    parent.chmod(0o755)
    data = parent / "state" / "postgres"
    yield data
    stop_embedded(data)
    shutil.rmtree(parent)


def test_a_server_starts_is_found_again_survives_a_crash_and_stops(folder: Path) -> None:
    assert embedded_pid(folder) is None
    stop_embedded(folder)  # nothing runs: no effect

    url = start_embedded(folder)
    pid = embedded_pid(folder)
    assert pid is not None
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (7)")
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",), "a Unix socket only"
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
    assert start_embedded(folder) == url
    assert embedded_pid(folder) == pid

    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists(), seconds=10, what="the end of the killed server")
    url = start_embedded(folder)
    assert embedded_pid(folder) not in {None, pid}
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (7,)

    stop_embedded(folder)
    assert embedded_pid(folder) is None
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
