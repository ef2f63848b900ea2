"""A replica's program: start the engine, keep its adapters and serving's view of it right, and end it in order.

`python -m serving.node.replica_host FOLDER`, started by an attempt's runner; FOLDER holds plan.json. It ends with 0
when it was told to stop and with 1 when the engine died or never came up; then the attempt fails and another follows.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kit.errors import HeliuError
from serving.node.adapters import Adapters
from serving.node.control_client import Away, ControlClient, FenceLost, Order, Refused
from serving.node.engine_client import EngineClient, EngineRefused, EngineSilent
from serving.node.engine_process import Engine
from serving.node.metrics import Reading
from serving.node.params import Params
from serving.node.report import Report
from serving.vocabulary import (
    Capability,
    EngineMetrics,
    ReplicaCommand,
    ReplicaState,
    SyncReport,
)

UP_SECONDS_MAX = 900
"""How long an engine may load its model; large ones take minutes."""
SILENT_SECONDS_MAX = 60
"""How long an engine may owe an answer; one under full load takes a second."""
_HEALTH_SECONDS = 0.2
_AWAY_SECONDS = 1.0
_SETTLE_SECONDS = 1.5
"""How long a draining replica waits for gateways to hear of it before it believes that nothing more comes."""
_SYNC_LAST_SECONDS = 2.0


class CannotServe(Exception):
    """The replica cannot go on; `cause` is one of the runner's causes."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message


@dataclass(frozen=True, slots=True)
class Setting:
    """All that the host is told."""

    params: Params
    grace_seconds: float
    folder: Path
    models: Path
    cache: Path
    control_url: str
    attempt_id: str
    token: str

    @classmethod
    def read(cls, folder: Path, environ: Mapping[str, str]) -> "Setting":
        """Raises CannotServe for a plan that is not a replica's."""
        plan = json.loads((folder / "plan.json").read_bytes())
        try:
            params = Params.model_validate(plan["params"])
        except ValidationError as error:
            raise CannotServe("bad_params", f"the plan's params are wrong: {error.error_count()} errors") from None
        return cls(
            params=params,
            grace_seconds=float(plan["grace_seconds"]),
            folder=folder,
            models=Path(environ["HELIU_MODELS_DIR"]),
            cache=Path(environ["HELIU_HOME"]) / "cache" / "vllm",
            control_url=environ["HELIU_CONTROL_URL"],
            attempt_id=environ["HELIU_ATTEMPT_ID"],
            token=environ["HELIU_ATTEMPT_TOKEN"],
        )

    @property
    def model_folder(self) -> Path:
        """The prepared model. Raises CannotServe when it is not on this node."""
        folder = self.models / self.params.source
        if folder.resolve().parent != self.models.resolve() or not (folder / "config.json").is_file():
            raise CannotServe("model_missing", f"model {self.params.source} is not on this node")
        return folder


class ReplicaHost:
    """One engine from its start to its end."""

    def __init__(self, setting: Setting, report: Report, engine: Engine) -> None:
        self._setting = setting
        self._report = report
        self._engine = engine
        self._client = EngineClient(engine.url, engine.key)
        self._control = ControlClient(setting.control_url, setting.attempt_id, setting.token)
        self._adapters = Adapters(
            self._control, self._client, base_model=setting.params.model, folder=setting.folder / "adapters"
        )
        self._state = ReplicaState.STARTING
        self._reason: str | None = None
        self._orders: list[Order] = []
        self._following: asyncio.Task[None] | None = None
        self._warmup: Reading | None = None
        self._heard_at = time.monotonic()
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until told to stop. Raises CannotServe or FenceLost."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        engine_lives = asyncio.create_task(self._engine_lives())
        tasks: list[asyncio.Task[Any]] = [
            engine_lives,
            *map(asyncio.create_task, (self._serve(), self._talk(), self._stop.wait())),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what ended it
            await self._drain(engine_lives)
        except CannotServe as problem:
            self._reason = problem.message
            self._enter(ReplicaState.FAILED)
            await self._last_word()
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._engine.end()
            await self._client.close()
            await self._control.close()

    async def _engine_lives(self) -> None:
        code = await self._engine.exited()
        raise CannotServe("engine_died", f"the engine ended by itself with exit code {code}")

    async def _serve(self) -> None:
        """From starting to ready; then forever."""
        began = time.monotonic()
        while not await self._client.is_up():
            if time.monotonic() - began > UP_SECONDS_MAX:
                raise CannotServe("engine_died", f"the engine did not come up in {UP_SECONDS_MAX} seconds")
            await asyncio.sleep(_HEALTH_SECONDS)
        self._enter(ReplicaState.WARMING)
        embeds = Capability.EMBEDDINGS in self._setting.params.capabilities
        try:
            self._warmup = await self._client.warm_up(self._setting.params.model, embeds=embeds)
        except (EngineRefused, EngineSilent) as error:
            raise CannotServe("engine_died", f"the engine did not answer its first request: {error}") from None
        self._heard_at = time.monotonic()
        await self._adapters.follow(self._orders)
        self._enter(ReplicaState.READY)
        self._report.started()
        _say(f"ready after {time.monotonic() - began:.1f} s at {self._engine.url}")
        await asyncio.Event().wait()

    async def _talk(self) -> None:
        """Sync with serving, at once when the state changes. A control plane that is away changes nothing here."""
        while True:
            self._changed.clear()
            pause = await self._sync()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), pause)

    async def _sync(self) -> float:
        """Seconds until the next one. Raises FenceLost."""
        try:
            reply = await self._control.sync(await self._said())
        except (Away, Refused) as problem:
            _say(f"no sync: {problem}")
            return _AWAY_SECONDS
        self._obey(reply.command)
        self._orders = reply.adapters
        if self._warmup is not None and (self._following is None or self._following.done()):
            self._following = asyncio.create_task(self._follow())
        return reply.poll_seconds

    async def _follow(self) -> None:
        before = self._adapters.loaded, self._adapters.failed
        await self._adapters.follow(self._orders)
        if before != (self._adapters.loaded, self._adapters.failed):
            self._changed.set()

    def _obey(self, command: ReplicaCommand) -> None:
        if command is ReplicaCommand.STOP:
            self._stop.set()
        elif command is ReplicaCommand.DRAIN and self._state is ReplicaState.READY:
            self._enter(ReplicaState.DRAINING)

    async def _said(self) -> SyncReport:
        report = SyncReport(
            state=self._state.value,
            engine_start=self._engine.start_id,
            url=self._engine.url,
            engine_key=self._engine.key,
            adapters_loading=self._adapters.loading,
            adapters_loaded=self._adapters.loaded,
            adapters_failed=[{"id": name, "why": why} for name, why in self._adapters.failed.items()],
            metrics=await self._metrics(),
        )
        if self._reason is not None:
            report["reason"] = self._reason
        return report

    async def _metrics(self) -> EngineMetrics | None:
        if self._warmup is None:
            return None
        try:
            now = await self._client.read()
        except EngineSilent:
            if time.monotonic() - self._heard_at > SILENT_SECONDS_MAX:
                raise CannotServe("engine_died", f"the engine was silent for {SILENT_SECONDS_MAX} seconds") from None
            return None
        self._heard_at = time.monotonic()
        return EngineMetrics(
            prompt_tokens_total=now.prompt_tokens,
            generation_tokens_total=now.generation_tokens,
            warmup_prompt_tokens=self._warmup.prompt_tokens,
            warmup_generation_tokens=self._warmup.generation_tokens,
            requests_running=now.running,
            requests_waiting=now.waiting,
            kv_cache_usage_ppm=now.kv_cache_usage_ppm,
        )

    async def _drain(self, engine_lives: "asyncio.Task[None]") -> None:
        """Take nothing new, let what runs finish within the grace, and tell serving the engine's last counts."""
        began = time.monotonic()
        was_ready = self._state in (ReplicaState.READY, ReplicaState.DRAINING)
        self._enter(ReplicaState.DRAINING)
        give_up_at = began + max(0.0, self._setting.grace_seconds - _SYNC_LAST_SECONDS - 1.0)
        while was_ready and not engine_lives.done() and time.monotonic() < give_up_at:
            with suppress(EngineSilent):
                idle = (await self._client.read()).is_idle
                if idle and time.monotonic() - began > _SETTLE_SECONDS:
                    break
            await asyncio.sleep(_HEALTH_SECONDS)
        await self._last_word()

    async def _last_word(self) -> None:
        with suppress(TimeoutError, FenceLost, CannotServe):
            await asyncio.wait_for(self._sync(), _SYNC_LAST_SECONDS)

    def _enter(self, state: ReplicaState) -> None:
        if self._state is not state:
            self._state = state
            self._changed.set()


async def host(setting: Setting, report: Report) -> None:
    """Start the engine and serve. Raises CannotServe or FenceLost."""
    setting.cache.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(setting.folder).free < 1 << 28:
        raise CannotServe("setup_failed", "the node has less than 256 MiB of disk left")
    try:
        engine = await Engine.start(setting.params, model=setting.model_folder, cache=setting.cache)
    except HeliuError as refusal:
        raise CannotServe("bad_params", refusal.message) from None
    except OSError as error:
        raise CannotServe("setup_failed", f"the engine could not be started: {error.strerror}") from None
    await ReplicaHost(setting, report, engine).run()


def main() -> int:
    """The exit code."""
    report = Report()
    environ: Mapping[str, Any] = dict(os.environ)
    os.environ.pop("HELIU_ATTEMPT_TOKEN", None)
    try:
        asyncio.run(host(Setting.read(Path(sys.argv[1]), environ), report))
    except CannotServe as problem:
        report.failed(problem.cause, problem.message)
        _say(problem.message)
        return 1
    except FenceLost as lost:
        report.failed("killed", f"another attempt runs this replica ({lost})")
        return 1
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"replica host: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
