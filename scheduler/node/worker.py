"""One worker of an attempt on its node: its folder, its program, its outputs. A gang has several of them."""

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scheduler.node.cache import Cache
from scheduler.node.checkpoints import Keeper, NotPacked, unpack
from scheduler.node.client import ControlPlane
from scheduler.node.environment import CACHE_BYTES, program_environment
from scheduler.node.folder import WorkFolder
from scheduler.node.inventory import Stock
from scheduler.node.outputs import collect, upload
from scheduler.node.process import Notice, ProgramProcess, Told
from scheduler.node.protocol import Cause, InputFile, Inventory, Plan
from scheduler.node.report import Checkpointed, Started
from scheduler.node.staging import NotReady, Stopped, stage_inputs

_SOURCE_ROOT = Path(__file__).resolve().parents[2]
SCRATCH_BYTES = 64 << 20
"""What a script may write beside its inputs and outputs: caches, byte code, the rounding of small files."""
_WATCHED_FILES_MAX = 100_000
_CACHE_BYTES_MAX = 32 << 30


class Worker:
    """Stage, launch, watch, upload, close."""

    def __init__(
        self,
        control: ControlPlane,
        plan: Plan,
        folder: WorkFolder,
        notice: Callable[[Notice], None],
        *,
        say: Callable[[str], None],
        rank: int = 0,
    ) -> None:
        self._control = control
        self._plan = plan
        self._folder = folder
        self._notice = notice
        self._say = say
        self._rank = rank
        self._program: ProgramProcess | None = None
        self._input_bytes = sum(file.bytes for file in plan.inputs)
        root = folder.path.parents[1] / "cache"
        self._cache = Cache(root / "files", plan.firm_id, bytes_max=int(os.environ.get(CACHE_BYTES, _CACHE_BYTES_MAX)))
        models = os.environ.get("HELIU_MODELS_DIR")
        self._stock = Stock(self._cache, Path(models) if models else None, root / "models")
        self._keeper = Keeper(control, folder.saved, self._cache, say=say)
        self._started_at: float | None = None

    def stage(self, stop: threading.Event) -> None:
        """Bring the inputs and what an earlier attempt kept. Raises NotReady or Stopped."""
        self._folder.write_plan(self._plan)
        self._fetch(self._plan.inputs, self._folder.inputs, stop)
        self._restore(stop)
        if stop.is_set():
            raise Stopped

    def inventories(self) -> list[Inventory]:
        """What its node has now."""
        return [self._stock.inventory(self._rank)]

    def launch(self, extra: Mapping[str, str]) -> None:
        """Start the program, from a thread that lives as long as it may run."""
        self._stock.mark_read(self._plan.model)
        environment = program_environment(os.environ, self._plan, extra, rank=self._rank)
        # Its working folder is its own, so it must be told where this code is.
        paths = [str(_SOURCE_ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        self._program = ProgramProcess(
            [sys.executable, "-m", self._plan.program, str(self._folder.path)],
            cwd=self._folder.path,
            environment=environment,
            notice=self._hear,
            rank=self._rank,
        )

    def terminate(self) -> None:
        """Ask the program to end."""
        if self._program is not None:
            self._program.terminate()

    def kill(self) -> None:
        """End the program now."""
        if self._program is not None:
            self._program.kill()

    def over_limit(self) -> bool:
        """Whether a sandboxed program has filled its folder beyond what it may keep."""
        if not self._plan.sandboxed:
            return False
        limit = self._plan.output_bytes_max + self._input_bytes + SCRATCH_BYTES
        kept = bytes_below(self._folder.checkpoint, _WATCHED_FILES_MAX)
        on_its_way = bytes_below(self._folder.saved, _WATCHED_FILES_MAX)
        rest = bytes_below(self._folder.path, _WATCHED_FILES_MAX) - kept - on_its_way
        return rest > limit or kept > self._plan.checkpoint_bytes_max + SCRATCH_BYTES

    def close(self) -> None:
        """Leave nothing running; its folder is the runner's to remove."""
        self.kill()
        self._keeper.close()

    def keep_checkpoint(self) -> None:
        """Wait, within bounds, until the last checkpoint has arrived."""
        if not self._keeper.flush():
            self._say("the last checkpoint did not arrive in time; the one before it stays")

    def upload(self, stop: threading.Event) -> None:
        """Send the outputs up. In a gang, each worker's files get a folder of its own. Raises NotReady or Stopped."""
        prefix = f"worker-{self._rank}/" if self._plan.workers > 1 else ""
        outputs = collect(self._folder.outputs, self._plan, prefix=prefix)
        upload(self._control, outputs, stop=stop, say=self._say)

    def _hear(self, notice: Notice) -> None:
        """Worker 0 speaks for the gang: what it says to be whole is kept."""
        if isinstance(notice, Told) and self._rank == 0:
            match notice.event:
                case Started():
                    self._started_at = self._started_at or notice.at
                case Checkpointed(step=step) if self._started_at is not None:
                    self._keeper.take(step, max(0, round((notice.at - self._started_at) * 1000)))
                case _:
                    pass
        self._notice(notice)

    def _fetch(self, files: Sequence[InputFile], folder: Path, stop: threading.Event) -> None:
        stage_inputs(self._control, files, folder, cache=self._cache, stop=stop, say=self._say)

    def _restore(self, stop: threading.Event) -> None:
        """Every worker gets back what worker 0 kept."""
        kept = self._plan.checkpoint
        if kept is None:
            return
        packed = InputFile(name="kept.tar", url=self._control.checkpoint_url(), sha256=kept.sha256, bytes=kept.bytes)
        self._fetch([packed], self._folder.saved, stop)
        archive = self._folder.saved / packed.name
        try:
            unpack(archive, self._folder.checkpoint, bytes_max=self._plan.checkpoint_bytes_max)
        except (NotPacked, ValueError, OSError) as problem:
            raise NotReady(Cause.SETUP_FAILED, f"the checkpoint cannot be unpacked: {problem}") from None
        archive.unlink()
        self._say(f"goes on from the checkpoint of step {kept.step}")


def bytes_below(folder: Path, files_max: int) -> int:
    """What the files below `folder` take on disk, links not followed; stops after `files_max` of them."""
    total, seen = 0, 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(path, name).lstat().st_blocks * 512
            except OSError:
                continue
            seen += 1
            if seen >= files_max:
                return total
    return total
