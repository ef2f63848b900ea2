import os
import subprocess
from pathlib import Path

from serving.node import traces


def test_what_a_dead_host_left_is_removed_and_a_living_ones_stays(tmp_path: Path) -> None:
    shm, sockets = tmp_path / "shm", tmp_path / "tmp"
    mine, dead, reused = traces.own_tag(), "heliu-4194999-1", f"heliu-{os.getpid()}-1"
    for tag in (mine, dead, reused):
        (sockets / tag).mkdir(parents=True)
        (sockets / tag / "socket").touch()
        shm.mkdir(exist_ok=True)
        (shm / f"{tag}_0123abcd").touch()
    (shm / "psm_somebody").touch()
    (sockets / "heliu-test-x").mkdir()
    assert traces.sweep(shm=shm, sockets=sockets) == {dead, reused}
    assert {path.name for path in shm.iterdir()} == {f"{mine}_0123abcd", "psm_somebody"}
    assert {path.name for path in sockets.iterdir()} == {mine, "heliu-test-x"}


def test_the_tag_names_process_and_start_time() -> None:
    assert traces.own_tag().startswith(f"heliu-{os.getpid()}-")
    assert traces.own_tag() == traces.own_tag()


def test_a_host_that_is_a_zombie_owns_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "600"])
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    (tmp_path / f"heliu-{child.pid}-{started}").mkdir()
    assert traces.sweep(shm=tmp_path, sockets=tmp_path) == set()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert traces.sweep(shm=tmp_path, sockets=tmp_path) == {f"heliu-{child.pid}-{started}"}
    child.wait()
