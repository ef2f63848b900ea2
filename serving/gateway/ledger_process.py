"""Usage goes to the ledger through a process of its own: charging a batch is work that no open stream should wait for.

The gateway sends frames: a line that says what shrunk leases go by now, then lines of its usage log as they stand
there. The process answers each frame with a line: `ok`, or why not.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

import msgspec

from kit import collector
from kit.db import Database
from kit.errors import HeliuError, InvalidInput, Unavailable
from kit.telemetry import configure_logging
from serving.gateway.charging import charge
from serving.gateway.control_plane import ControlPlane
from serving.gateway.ports import UNFORESEEN
from serving.gateway.usage_lines import decode
from serving.metering import Closed

log = logging.getLogger(__name__)

FRAME_BYTES = 4
ANSWER_SECONDS_MAX = 60
"""A ledger that takes longer for a batch than this is taken to hang."""
NICER = 10
"""On a machine with too few cores, answering comes before charging."""


class LedgerProcess:
    """The sending side; starts the process when it is first needed and again when it died."""

    def __init__(self, control: ControlPlane, database_url: str) -> None:
        self._control = control
        self._environment = os.environ | {"HELIU_DATABASE_URL": database_url, "HELIU_GATEWAY_HOLDER": control.holder}
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Its process id, once it runs."""
        return None if self._process is None else self._process.pid

    async def ingest(self, lines: Sequence[bytes]) -> None:
        """See ports.Ledger."""
        frame = b"".join((msgspec.json.encode(self._control.successors), b"\n", *lines))
        async with self._turn:
            process = await self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(len(frame).to_bytes(FRAME_BYTES, "big"))
                process.stdin.write(frame)
                async with asyncio.timeout(ANSWER_SECONDS_MAX):
                    await process.stdin.drain()
                    answer = await process.stdout.readline()
            except TimeoutError as error:
                process.kill()
                raise Unavailable("the ledger does not answer", hint="its process is started again") from error
            except OSError as error:
                raise Unavailable("the gateway's ledger process is gone", hint="it is started again") from error
            except asyncio.CancelledError:
                process.kill()  # its next answer would be taken for another frame's
                raise
        if answer.startswith(b"never "):
            _, code, why = answer.decode().strip().split(" ", 2)
            raise InvalidInput(why, code=code)
        if answer != b"ok\n":
            raise Unavailable(answer.decode().strip() or "the gateway's ledger process ended")

    async def close(self) -> None:
        """End the process; what it was charging it finishes."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "serving.gateway.ledger_process",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=self._environment,
            )  # fmt: skip
        return self._process


async def _charge_frames() -> None:
    """The receiving side: until the gateway closes its end, or dies."""
    collector.look_rarely()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    db = Database(os.environ["HELIU_DATABASE_URL"], pool_size=1)
    source = os.environ["HELIU_GATEWAY_HOLDER"]
    try:
        while True:
            size = int.from_bytes(await reader.readexactly(FRAME_BYTES), "big")
            head, *lines = (await reader.readexactly(size)).split(b"\n")
            records = [record for line in lines if isinstance(record := decode(line), Closed)]
            try:
                await charge(db, source, records, msgspec.json.decode(head, type=dict[str, str]))
            except InvalidInput as error:
                answer = f"never {error.code} {error.message}"
            except (HeliuError, OSError) as error:
                answer = str(error)
            except Exception as error:
                log.exception("the ledger failed on usage in a way nobody foresaw")
                answer = f"never {UNFORESEEN} {type(error).__name__}"
            else:
                answer = "ok"
            os.write(sys.stdout.fileno(), answer.replace("\n", " ").encode() + b"\n")
    except asyncio.IncompleteReadError:
        return
    finally:
        await db.close()


if __name__ == "__main__":
    configure_logging("gateway-ledger")
    os.nice(NICER)
    asyncio.run(_charge_frames())
