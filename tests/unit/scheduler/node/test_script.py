"""What a script in its sandbox can and cannot reach. Real bubblewrap, real sockets, the real runner around it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import REPOSITORY, TOKEN, ControlPlaneStandIn, is_alive, plan, running, serving
from tests.support.attempts import home as home
from tests.support.needs import need
from tests.support.until import until

PROGRAM = "scheduler.node.recipes.script.program"


@pytest.fixture(autouse=True)
def _bubblewrap() -> None:
    need(shutil.which("bwrap") is not None, "bubblewrap", "run `apt-get install -y bubblewrap`")


def script(source: str, **changes: Any) -> ControlPlaneStandIn:
    """An attempt that runs `source` with the node's Python."""
    inputs = {"main.py": source.encode(), "data/words.txt": b"river lantern"}
    return plan(PROGRAM, inputs=inputs, params={"command": ["python3", "main.py"]}, sandboxed=True, **changes)


def run(control: ControlPlaneStandIn, home: Path, **environment: str) -> dict[str, Any]:
    with serving(control), running(control, home, environment=environment) as attempt:
        code = attempt.wait()
        assert control.finished is not None, attempt.said()
        assert code == 0, attempt.said()
        return control.finished


def output(control: ControlPlaneStandIn, name: str = "seen.json") -> Any:
    return json.loads(control.outputs[name].content)


def test_a_script_reads_its_files_and_leaves_its_outputs(home: Path) -> None:
    control = script("""
from pathlib import Path
words = Path("data/words.txt").read_text().split()
Path("outputs/镜头").mkdir()
Path("outputs/镜头/count.txt").write_text(str(len(words)))
print("counted")
""")
    finished = run(control, home)
    assert (finished["outcome"], finished["exit_code"]) == ("succeeded", 0), control.text
    assert control.started == 1 and "counted" in control.text
    assert {name: (stored.content, stored.kind) for name, stored in control.outputs.items()} == {
        "镜头/count.txt": (b"2", "file")
    }


def test_a_script_sees_no_variable_of_the_platform(home: Path) -> None:
    control = script("""
import json, os
json.dump(dict(os.environ), open("outputs/seen.json", "w"))
""")
    run(control, home, AWS_SECRET_ACCESS_KEY="cloud-secret")
    allowed = {"PATH", "HOME", "HELIU_WORKDIR", "HELIU_OUTPUTS", "HELIU_CHECKPOINT", "LANG", "TMPDIR", "RANK"}
    assert set(output(control)) <= allowed | {"WORLD_SIZE", "PWD", "LC_CTYPE", "PYTHONUNBUFFERED"}
    assert output(control)["HOME"] == output(control)["HELIU_WORKDIR"] == "/job"


def test_a_script_finds_no_secret_in_any_process_it_can_see(home: Path) -> None:
    control = script("""
import json, os
seen = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    for file in ("environ", "cmdline"):
        try:
            seen[pid + file] = open(f"/proc/{pid}/{file}", errors="replace").read()
        except OSError as error:
            seen[pid + file] = str(error)
json.dump(seen, open("outputs/seen.json", "w"))
""")
    run(control, home)
    text = json.dumps(output(control))
    assert TOKEN not in text and "the-cluster-secret" not in text
    assert len(output(control)) < 20, "only its own processes are there"


def test_a_script_is_another_user_without_capabilities_or_new_privileges(home: Path) -> None:
    need(os.geteuid() == 0, "root", "run the tests as root")
    control = script("""
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
seen = {name: status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")}
seen |= {"uid": os.getuid(), "groups": os.getgroups()}
try:
    os.setuid(0)
    seen["root"] = True
except OSError:
    seen["root"] = False
json.dump(seen, open("outputs/seen.json", "w"))
""")
    run(control, home)
    seen = output(control)
    assert seen["uid"] >= 60_000 and seen["groups"] in ([], [seen["uid"]]) and seen["root"] is False
    assert {int(seen[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")


@contextmanager
def listening(path: Path | None = None) -> Iterator[tuple[Any, list[bytes]]]:
    """A server on loopback, or on a Unix socket: its address and what reached it."""
    server = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    server.bind(str(path) if path else ("127.0.0.1", 0))
    if path:
        path.chmod(0o777)
    server.listen()
    got: list[bytes] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            got.append(b"reached")
            connection.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server.getsockname(), got
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(timeout=5)


def test_a_script_reaches_no_server_on_the_node_and_none_outside(home: Path) -> None:
    with listening() as (address, got):
        control = script(f"""
import json, socket
seen = {{}}
for host, port in [("127.0.0.1", {address[1]}), ("127.0.0.1", 6379), ("192.0.2.1", 80), ("::1", {address[1]})]:
    try:
        socket.create_connection((host, port), timeout=2)
        seen[f"{{host}} {{port}}"] = "reached"
    except OSError as error:
        seen[f"{{host}} {{port}}"] = str(error)
json.dump(seen, open("outputs/seen.json", "w"))
""")
        run(control, home)
    assert got == []
    assert "reached" not in output(control).values()


def test_a_script_reaches_no_socket_or_file_of_the_platform_or_of_another_firm(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / "secrets").mkdir()
    (home / "secrets" / "ray_token").write_text("cluster")
    (home / "secrets" / "ray_token").chmod(0o644)
    other = home / "work" / "att_other" / "inputs"
    other.mkdir(parents=True)
    (other / "film.txt").write_text("another firm's film")
    for folder in (home, home / "secrets", home / "work", other.parent, other):
        folder.chmod(0o777)
    short = Path(f"/tmp/.heliu-test-{os.getpid()}.5432")
    with listening(short) as (_, got):
        try:
            control = script(f"""
import json, os, socket
seen = {{}}
for path in {[str(home / "secrets" / "ray_token"), str(other / "film.txt"), "/root/.ssh", "/etc/shadow"]}:
    seen[path] = os.path.exists(path)
seen["folders"] = os.path.exists({str(home / "work")!r}) or os.path.exists({str(tmp_path)!r})
try:
    socket.socket(socket.AF_UNIX).connect({str(short)!r})
    seen["socket"] = True
except OSError:
    seen["socket"] = False
json.dump(seen, open("outputs/seen.json", "w"))
""")
            run(control, home)
        finally:
            short.unlink()
    assert got == []
    assert set(output(control).values()) == {False}


def test_a_script_cannot_write_outside_its_folder_or_make_namespaces(home: Path) -> None:
    control = script("""
import ctypes, json, os
seen = {}
for path in ("/usr/x", "/etc/x", "/x", os.path.dirname(os.__file__) + "/x", "/proc/sys/kernel/hostname"):
    try:
        open(path, "w")
        seen[path] = True
    except OSError:
        seen[path] = False
libc = ctypes.CDLL(None, use_errno=True)
seen["user namespace"] = libc.unshare(0x10000000) == 0
seen["mount"] = libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0
try:
    os.mknod("outputs/device", 0o20666, os.makedev(1, 3))
    seen["device"] = True
except OSError:
    seen["device"] = False
open("/tmp/private", "w").write("mine")
json.dump(seen, open("outputs/seen.json", "w"))
""")
    run(control, home)
    assert set(output(control).values()) == {False}, output(control)
    assert not Path("/tmp/private").exists()


def test_a_script_sees_only_harmless_devices(home: Path) -> None:
    control = script("""
import json, os
json.dump(sorted(os.listdir("/dev")), open("outputs/seen.json", "w"))
""")
    run(control, home)
    harmless = {"core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty"}
    assert set(output(control)) <= harmless | {"urandom", "zero"}


@pytest.mark.parametrize(
    ("leave", "why"),
    [
        ("os.symlink('/etc/passwd', 'outputs/stolen')", "not a regular file"),
        ("os.symlink('/etc', 'outputs/folder')", "not a regular file"),
        ("os.mkfifo('outputs/pipe')", "not a regular file"),
        ("open('outputs/a', 'w'); os.link('outputs/a', 'outputs/b')", "hard link"),
        ("open(b'outputs/\\xff\\xfe', 'w')", "a name in outputs/ is refused"),
        ("open('outputs/evil\\u202ename', 'w')", "invisible characters"),
        ("[open(f'outputs/{n}', 'w') for n in range(20)]", "more than 5 files"),
        ("[open(f'outputs/{n}', 'w').write('x' * 1000) for n in range(2)]", "2000 bytes"),
    ],
)
def test_outputs_that_are_not_plain_files_within_limits_are_refused(home: Path, leave: str, why: str) -> None:
    control = script(f"import os\n{leave}\n", output_files_max=5, output_bytes_max=1_999)
    finished = run(control, home)
    assert (finished["outcome"], finished["cause"]) == ("failed", "output_refused"), control.text
    assert why in finished["message"]
    assert control.outputs == {}


def test_a_script_that_fills_its_folder_is_ended(home: Path) -> None:
    control = script(
        """
n = 0
while True:
    open(f"chunk{n % 10000}", "wb").write(b"x" * 1_000_000)
    n += 1
""",
        output_bytes_max=5_000_000,
    )
    finished = run(control, home)
    assert finished["cause"] in ("output_refused", "program_failed") and finished["outcome"] == "failed"
    assert "wrote more than" in finished["message"]


def test_a_script_that_fails_is_the_firms_failure_with_its_exit_code(home: Path) -> None:
    finished = run(script("raise SystemExit(3)"), home)
    assert (finished["outcome"], finished["cause"], finished["exit_code"]) == ("failed", "program_failed", 3)


def test_a_script_that_kills_itself_is_not_the_platforms_fault(home: Path) -> None:
    finished = run(script("import os; os.kill(os.getpid(), 9)"), home)
    assert (finished["cause"], finished["exit_code"]) == ("program_failed", 137)


def test_a_command_that_is_not_there_is_the_firms_failure(home: Path) -> None:
    control = script("")
    control.plan["params"] = {"command": ["no-such-program"]}
    finished = run(control, home)
    assert (finished["outcome"], finished["cause"]) == ("failed", "program_failed")


def test_a_node_without_bubblewrap_says_what_to_install(home: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    finished = run(script("print(1)"), home, PATH=str(empty))
    assert (finished["cause"], finished["ran_ms"]) == ("setup_failed", 0)
    assert "apt-get install -y bubblewrap" in finished["message"]


def test_a_script_hears_sigterm_and_has_its_grace(home: Path) -> None:
    control = script("""
import signal, sys, time
def leave(*_):
    print("saving", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("running", flush=True)
time.sleep(600)
""")
    with serving(control), running(control, home) as attempt:
        attempt.until_log("running")
        control.stop = True
        assert attempt.wait(20) == 0
    assert control.finished is not None and control.finished["outcome"] == "stopped"
    assert "saving" in control.text


def sandboxed_pids(home: Path) -> list[int]:
    """Processes whose bubblewrap was given this home."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(home).encode() in words and b"bwrap" in words and is_alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def test_nothing_of_a_script_survives_a_killed_runner(home: Path) -> None:
    control = script("""
import os, time
if os.fork() == 0:
    os.setsid()
print("running", flush=True)
time.sleep(600)
""")
    with serving(control), running(control, home) as attempt:
        attempt.until_log("running")
        inside = until(lambda: sandboxed_pids(home), seconds=10, what="the sandbox")
        assert len(inside) >= 2, "bubblewrap outside and inside"
        attempt.process.send_signal(signal.SIGKILL)
        until(lambda: not sandboxed_pids(home), seconds=5, what="the end of the sandbox")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user of the machine may enter."""
    folder = Path(tempfile.mkdtemp(prefix="heliu-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


AS_NOBODY = """
import os, subprocess, sys
from pathlib import Path
from scheduler.node.recipes.script.sandbox import Limits, Shown, command_line, script_environment

def file(text):
    fd = os.memfd_create("shown", 0)
    os.write(fd, text)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd

shown = Shown(file(b"job:x:65534:65534::/job:/bin/sh\\n"), file(b"job:x:65534:\\n"), None)
folder = Path(sys.argv[1])
line = command_line(
    ["sh", "main.sh"],
    inputs=folder / "inputs",
    outputs=folder / "outputs",
    checkpoint=folder / "checkpoint",
    limits=Limits(file_bytes=10**9, memory_bytes=10**9),
    devices=[],
    uid=None,
    shown=shown,
    environment=script_environment(0, 1),
)
sys.exit(subprocess.run(line, pass_fds=shown.fds).returncode)
"""


def test_without_root_a_script_runs_in_a_user_namespace(open_folder: Path) -> None:
    system_python = Path("/usr/bin/python3")
    need(os.geteuid() == 0 and system_python.exists(), "root and a system Python", "run the tests as root")
    code = open_folder / "code" / "scheduler" / "node" / "recipes" / "script"
    code.mkdir(parents=True)
    shutil.copy(REPOSITORY / "scheduler" / "node" / "recipes" / "script" / "sandbox.py", code)
    job = open_folder / "job"
    for name in ("inputs/outputs", "outputs", "inputs/checkpoint", "checkpoint"):
        (job / name).mkdir(parents=True)
    (job / "inputs" / "main.sh").write_text("id -u > outputs/uid; cat /proc/1/comm > outputs/init; ls / > outputs/root")
    for path in (job, *job.rglob("*")):
        os.chown(path, 65_534, 65_534)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(system_python), "-c", AS_NOBODY, str(job)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(open_folder / "code")},
    )
    assert done.returncode == 0, done.stderr
    assert (job / "outputs" / "uid").read_text().strip() == "65534"
    assert (job / "outputs" / "init").read_text().strip() == "bwrap"
    assert "home" not in (job / "outputs" / "root").read_text().split()
