"""The embedded PostgreSQL as a process that can be watched: `postgres_keeper FOLDER URL_FILE`.

The server is a daemon: it would outlive whoever started it. The keeper lives exactly as long as the server does: it
ends with code 1 when the server dies, and stops the server when it is told to end.
"""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from kit.postgres import embedded_pid, start_embedded, stop_embedded

POLL_SECONDS = 0.5


def main(folder: Path, url_file: Path) -> int:
    """Start (or find) the server, say where it is, and stay until it or we are to end."""
    told_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told_to_end.set())
    url = start_embedded(folder)
    draft = url_file.with_suffix(".draft")
    draft.write_text(url)
    draft.replace(url_file)
    while not told_to_end.wait(POLL_SECONDS):
        if not _runs(embedded_pid(folder)):
            sys.stderr.write("PostgreSQL ended by itself; its log is in the data folder\n")
            return 1
    stop(folder)
    return 0


def stop(folder: Path) -> None:
    """Stop the server of `folder` if it runs; a stale pid file is no error."""
    try:
        stop_embedded(folder)
    except subprocess.CalledProcessError:
        if _runs(embedded_pid(folder)):
            raise


def _runs(pid: int | None) -> bool:
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
