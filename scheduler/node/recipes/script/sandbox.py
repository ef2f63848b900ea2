"""The sandbox of `script`: another user, no network, own process and IPC namespaces, an empty environment (bubblewrap).

As root the script gets a user id of its own (60000 and up, one per attempt on this node) after bubblewrap has set up
the namespaces. Without root it runs in a user namespace as the node's own user, whose other files it does not see.
"""

import fcntl
import os
import re
import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

UID_FIRST = 60_000
UID_COUNT = 5_000
FOLDER = "/job"
_TMP_BYTES_MAX = 1 << 30
_SYSTEM = ("/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_ETC = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime")
_NVIDIA_SHARED = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")


@dataclass(frozen=True, slots=True)
class Limits:
    """rlimits of every process in the sandbox."""

    file_bytes: int
    memory_bytes: int
    processes: int = 512
    open_files: int = 4096

    def arguments(self) -> list[str]:
        """For prlimit(1)."""
        return [
            f"--fsize={self.file_bytes}",
            f"--data={self.memory_bytes}",
            f"--nproc={self.processes}",
            f"--nofile={self.open_files}",
            "--core=0",
            "--memlock=65536",
        ]


@dataclass(frozen=True, slots=True)
class Shown:
    """Open descriptors bubblewrap reads: the passwd and group files to show, and the system-call filter."""

    passwd_fd: int
    group_fd: int
    seccomp_fd: int | None

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(fd for fd in (self.passwd_fd, self.group_fd, self.seccomp_fd) if fd is not None)


def missing_programs() -> list[str]:
    """What must be installed before a script can run here."""
    return [name for name in ("bwrap", "setpriv", "prlimit") if shutil.which(name) is None]


def take_uid(locks: Path) -> tuple[int, int]:
    """A user id that no other attempt on this node has, and the open lock that keeps it."""
    locks.mkdir(parents=True, exist_ok=True, mode=0o700)
    for uid in range(UID_FIRST, UID_FIRST + UID_COUNT):
        fd = os.open(locks / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        return uid, fd
    raise OSError("every user id for scripts is taken on this node")


def give_folder(folder: Path, uid: int) -> None:
    """Make the staged files the script's own. Nothing in them is a link: the runner wrote them."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, uid, follow_symlinks=False)


def gpu_devices(environ: Mapping[str, str]) -> list[str]:
    """The device files of the accelerators this attempt was given, by CUDA_VISIBLE_DEVICES; none without it."""
    given = [part.strip() for part in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    own = [f"/dev/nvidia{number}" for number in given if re.fullmatch(r"\d{1,3}", number)]
    own = [path for path in own if _is_device(path)]
    return [*own, *filter(_is_device, _NVIDIA_SHARED)] if own else []


def command_line(
    command: list[str],
    *,
    inputs: Path,
    outputs: Path,
    checkpoint: Path,
    limits: Limits,
    devices: list[str],
    uid: int | None,
    shown: Shown,
    environment: Mapping[str, str],
) -> list[str]:
    """Argv that runs `command` in the sandbox. `uid` None: the node's own user, in a user namespace."""
    namespaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if uid is None:
        namespaces = ["--unshare-user", *namespaces]
        drop = ["setpriv", "--no-new-privs"]
    else:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            namespaces += ["--cap-add", capability]
        drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"]
        drop += ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
    return [
        "bwrap",
        *namespaces,
        "--die-with-parent",
        "--hostname",
        "heliu-job",
        *_filesystem(inputs, outputs, checkpoint, devices, shown),
        *(["--seccomp", str(shown.seccomp_fd)] if shown.seccomp_fd is not None else []),
        "--clearenv",
        *[word for name, value in environment.items() for word in ("--setenv", name, value)],
        "--chdir",
        FOLDER,
        "--",
        "/usr/bin/prlimit",
        *limits.arguments(),
        *drop,
        "--",
        *command,
    ]


def _filesystem(inputs: Path, outputs: Path, checkpoint: Path, devices: list[str], shown: Shown) -> list[str]:
    """A root of its own: system and Python read-only, the job's folder, private /tmp, /proc and /dev."""
    words = ["--ro-bind", "/usr", "/usr"]
    for path in _SYSTEM:
        if Path(path).is_symlink():
            words += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).is_dir():
            words += ["--ro-bind", path, path]
    for path in _parents([Path("/etc/passwd"), *python_folders()]):
        words += ["--perms", "0755", "--dir", str(path)]
    for path in _ETC:
        words += ["--ro-bind-try", path, path]
    words += ["--perms", "0644", "--ro-bind-data", str(shown.passwd_fd), "/etc/passwd"]
    words += ["--perms", "0644", "--ro-bind-data", str(shown.group_fd), "/etc/group"]
    for path in python_folders():
        words += ["--ro-bind", str(path), str(path)]
    words += ["--proc", "/proc", "--dev", "/dev"]
    for path in devices:
        words += ["--dev-bind", path, path]
    for path in ("/tmp", "/dev/shm"):  # noqa: S108 - the sandbox's own
        words += ["--perms", "1777", "--size", str(_TMP_BYTES_MAX), "--tmpfs", path]
    words += ["--bind", str(inputs), FOLDER, "--bind", str(outputs), f"{FOLDER}/outputs"]
    words += ["--bind", str(checkpoint), f"{FOLDER}/checkpoint"]
    return words


def python_folders() -> list[Path]:
    """Where this interpreter and its libraries are, unless below /usr, which is there anyway."""
    folders = {Path(sys.base_prefix).resolve(), Path(sys.prefix).absolute()}
    return sorted(folder for folder in folders if not folder.is_relative_to("/usr"))


def _parents(paths: list[Path]) -> list[Path]:
    """The folders above, outermost first; bubblewrap would make them for its own user alone."""
    above = {parent for path in paths for parent in path.parents} - {Path("/"), Path("/usr")}
    return sorted(above)


def script_environment(rank: int, world_size: int, task_index: int | None = None) -> dict[str, str]:
    """All that a script sees."""
    task = {} if task_index is None else {"HELIU_TASK_INDEX": str(task_index)}
    return task | {
        "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": FOLDER,
        "HELIU_WORKDIR": FOLDER,
        "HELIU_OUTPUTS": f"{FOLDER}/outputs",
        "HELIU_CHECKPOINT": f"{FOLDER}/checkpoint",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
        "PYTHONUNBUFFERED": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
    }


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(Path(path).stat().st_mode)
    except OSError:
        return False
