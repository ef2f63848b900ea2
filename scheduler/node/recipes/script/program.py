"""`script`: the firm's own command in a sandbox. This process stays outside it and passes signals in."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from scheduler.node.checkpoints import CALL, NotPacked, called_step
from scheduler.node.process import die_with_parent
from scheduler.node.protocol import Cause
from scheduler.node.recipes.entry import CannotRun, Task, run
from scheduler.node.recipes.script import seccomp
from scheduler.node.recipes.script.params import OWN_FOLDERS, ScriptParams
from scheduler.node.recipes.script.sandbox import (
    FOLDER,
    Limits,
    Shown,
    command_line,
    give_folder,
    gpu_devices,
    missing_programs,
    script_environment,
    take_uid,
)

_MEMORY = "HELIU_SCRIPT_MEMORY_BYTES_MAX"
_PROBE_SECONDS_MAX = 20
_LOOK_SECONDS = 0.5
"""How often the script's call to keep its checkpoint is looked for."""


def main(task: Task) -> int:
    """The script's exit code."""
    params = ScriptParams.model_validate(task.params)
    missing = missing_programs()
    if missing:
        raise CannotRun(
            Cause.SETUP_FAILED,
            f"the node lacks {', '.join(missing)}; run: apt-get install -y bubblewrap util-linux",
        )
    for folder in OWN_FOLDERS:  # where they are mounted
        (task.inputs / folder).mkdir(exist_ok=True)
    uid, lock = _own_user(task)
    sandbox = Sandbox(task, uid)
    sandbox.probe()
    task.report.started()
    code = sandbox.run(params.command)
    if lock is not None:
        os.close(lock)
    return code


def _own_user(task: Task) -> tuple[int | None, int | None]:
    """As root: the script's user id, its lock, and the folder handed over. (None, None) without root."""
    if os.geteuid() != 0:
        return None, None
    uid, lock = take_uid(Path(os.environ["HELIU_HOME"]) / "run" / "script-users")
    for folder in (task.inputs, task.outputs, task.checkpoint):
        give_folder(folder, uid)
    return uid, lock


class Sandbox:
    """bubblewrap with one attempt's folder."""

    def __init__(self, task: Task, uid: int | None) -> None:
        self._task = task
        self._uid = uid
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def probe(self) -> None:
        """Try the same sandbox with /bin/true, so that a node that cannot build it is not taken for a failed script."""
        with self._open(["/usr/bin/true"], capture=True) as process:
            try:
                _, said = process.communicate(timeout=_PROBE_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                raise CannotRun(Cause.SETUP_FAILED, "the sandbox did not come up in time") from None
        if process.returncode != 0:
            why = said.decode(errors="replace").strip()[:300]
            raise CannotRun(Cause.SETUP_FAILED, f"the node cannot build the sandbox: {why}")

    def run(self, command: list[str]) -> int:
        """Run it to its end; SIGTERM is passed in to every process of the sandbox."""
        signal.signal(signal.SIGTERM, self._pass_in)
        with self._open(command, capture=False) as self._process:
            if self._stopping:
                self._signal_inside(signal.SIGTERM)
            code: int | None = None
            while code is None:
                with suppress(subprocess.TimeoutExpired):
                    code = self._process.wait(_LOOK_SECONDS)
                self._answer_call()  # also after its end: a script told to stop may have called with its last words
            return code

    def _answer_call(self) -> None:
        """Keep the script's checkpoint when it has asked for that, and take the asking away."""
        try:
            step = called_step(self._task.checkpoint)
            if step is None:
                return
            self._task.save(step)
        except NotPacked as problem:
            print(f"the checkpoint is not kept: {problem}", flush=True)  # noqa: T201 - the job's log
        call = self._task.checkpoint / CALL
        if call.is_dir() and not call.is_symlink():
            shutil.rmtree(call, ignore_errors=True)
        else:
            call.unlink(missing_ok=True)

    def _open(self, command: list[str], *, capture: bool) -> subprocess.Popen[bytes]:
        """Its own session: a signal to our group must not end bubblewrap itself before the script had its grace."""
        uid = self._uid if self._uid is not None else os.getuid()
        gid = self._uid if self._uid is not None else os.getgid()
        shown = Shown(
            passwd_fd=_memory_file(f"job:x:{uid}:{gid}:job:{FOLDER}:/bin/sh\n".encode()),
            group_fd=_memory_file(f"job:x:{gid}:\n".encode()),
            seccomp_fd=_memory_file(program) if (program := seccomp.program()) else None,
        )
        line = command_line(
            command,
            inputs=self._task.inputs,
            outputs=self._task.outputs,
            checkpoint=self._task.checkpoint,
            limits=self._limits(),
            devices=gpu_devices(os.environ),
            uid=self._uid,
            shown=shown,
            environment=script_environment(
                int(os.environ.get("RANK", "0")), self._task.plan.workers, self._task.plan.task_index
            ),
        )
        parent = os.getpid()
        try:
            return subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if capture else None,
                stderr=subprocess.PIPE if capture else None,
                env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
                pass_fds=shown.fds,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - this process has one thread
            )
        finally:
            for fd in shown.fds:
                os.close(fd)

    def _limits(self) -> Limits:
        half_of_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        return Limits(
            file_bytes=self._task.plan.output_bytes_max,
            memory_bytes=int(os.environ.get(_MEMORY, half_of_memory)),
        )

    def _pass_in(self, number: int, _frame: object) -> None:
        self._stopping = True
        self._signal_inside(signal.Signals(number))

    def _signal_inside(self, number: signal.Signals) -> None:
        """To every process below bubblewrap's own two, seen from outside."""
        if self._process is None:
            return
        children = _children_by_parent()
        inits = children.get(self._process.pid, [])
        pending = [pid for init in inits for pid in children.get(init, [])]
        while pending:
            pid = pending.pop()
            pending += children.get(pid, [])
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _children_by_parent() -> dict[int, list[int]]:
    """Every process on the node under its parent, from /proc/<pid>/stat: proc(5)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                after_name = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
                children.setdefault(int(after_name.split()[1]), []).append(int(entry.name))
    return children


def _memory_file(content: bytes) -> int:
    fd = os.memfd_create("sandbox", 0)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


if __name__ == "__main__":
    run(main)
