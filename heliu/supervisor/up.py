"""`heliu up`: check, start everything, say where it is, and stay until told to end."""

import asyncio
import contextlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from heliu.supervisor import preflight, ray_cluster
from heliu.supervisor.down import SUPERVISOR_SECONDS_MAX, end_leftovers
from heliu.supervisor.keep import Supervisor, json_reporter
from heliu.supervisor.services import Layout, services
from kit.errors import Unavailable
from kit.settings import Settings

Progress = Callable[[str, str], None]
DETACHED_SECONDS_MAX = 240


async def run(settings: Settings, progress: Progress, when_ready: Callable[[], None]) -> None:
    """The platform in the foreground: returns when a signal ended it. Raises when it does not get ready."""
    home = settings.home.resolve()
    preflight.check(settings)
    end_leftovers(home, lambda line: progress("supervisor", line))
    ray_cluster.prepare_temp_folder(home)
    instance_id = secrets.token_hex(8)
    (home / "logs").mkdir(parents=True, exist_ok=True)
    note = json_reporter(Layout(settings).log_file("supervisor"))

    def report(name: str, what: str) -> None:
        note(name, what)
        progress(name, what)

    supervisor = Supervisor(services(settings), home=home, instance_id=instance_id, report=report)
    async with _told_to_end() as told:
        starting = asyncio.create_task(supervisor.start())
        waiting = asyncio.create_task(told.wait())
        try:
            await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                when_ready()
                await waiting
        finally:
            for task in (starting, waiting):
                task.cancel()
            await supervisor.stop()


@contextlib.asynccontextmanager
async def _told_to_end() -> AsyncIterator[asyncio.Event]:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, told.set)
    try:
        yield told
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def start_detached(settings: Settings, progress: Progress) -> None:
    """Start the platform as a process of its own and return when it is ready. Raises Unavailable when it does not.

    Whatever else ends the wait, Ctrl-C included, ends what was started.
    """
    home = settings.home.resolve()
    preflight.check(settings)
    end_leftovers(home, lambda line: progress("supervisor", line))
    (home / "logs").mkdir(parents=True, exist_ok=True)
    log = Layout(settings).log_file("up")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "heliu", "up", "--plain"],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        _follow(process, home, log, progress)
    except BaseException:
        process.terminate()
        process.wait(SUPERVISOR_SECONDS_MAX)
        raise


def _follow(process: subprocess.Popen[bytes], home: Path, log: Path, progress: Progress) -> None:
    deadline = time.monotonic() + DETACHED_SECONDS_MAX
    with log.open() as lines:
        while True:
            for line in lines:
                name, _, what = line.strip().partition(": ")
                progress(name, what)
            instance = preflight.running_instance(home)
            if instance and instance.ready and instance.supervisor.pid == process.pid:
                return
            if process.poll() is not None:
                words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                raise Unavailable(f"the platform did not start: {' '.join(words[-2:])}", hint=f"its log: {log}")
            if time.monotonic() > deadline:
                raise Unavailable(f"the platform was not ready after {DETACHED_SECONDS_MAX} s", hint=f"its log: {log}")
            time.sleep(0.2)
