"""What is packed of a program's checkpoint folder, and what comes back; with the real runner around it."""

import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from scheduler.node.checkpoints import CALL, NotPacked, called_step, pack, unpack
from tests.support.attempts import ControlPlaneStandIn, plan, running, serving
from tests.support.attempts import home as home
from tests.support.needs import need
from tests.support.until import until

SCRIPT = "scheduler.node.recipes.script.program"
# Counts on from where it was, keeps every number, and stops at ten.
COUNTER = """
import os, time
from pathlib import Path
kept = Path(os.environ["HELIU_CHECKPOINT"])
done = int((kept / "n").read_text()) if (kept / "n").exists() else 0
print(f"begins at {done}", flush=True)
while done < 10:
    done += 1
    (kept / "n").write_text(str(done))
    (kept / "SAVE").write_text(str(done))
    while (kept / "SAVE").exists():
        time.sleep(0.02)
    print(f"kept {done}", flush=True)
    if done == 3 and not Path("go").exists():
        time.sleep(600)
Path("outputs/n").write_text(str(done))
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(checkpoint, saved, restored)."""
    made = tuple(tmp_path / name for name in ("checkpoint", "saved", "restored"))
    for folder in made:
        folder.mkdir()
    return made[0], made[1], made[2]


def test_a_folder_comes_back_as_it_was_and_the_same_files_give_the_same_bytes(folders: tuple[Path, Path, Path]) -> None:
    folder, saved, restored = folders
    (folder / "层").mkdir()
    (folder / "层" / "weights.bin").write_bytes(b"\0\1\2" * 1000)
    (folder / "step").write_text("7")
    (folder / CALL).write_text("7")
    first = pack(folder, saved, 7, bytes_max=10_000).read_bytes()
    os.utime(folder / "step", (1, 1))
    assert pack(folder, saved, 7, bytes_max=10_000).read_bytes() == first
    unpack(saved / "7.tar", restored, bytes_max=10_000)
    assert (restored / "层" / "weights.bin").read_bytes() == b"\0\1\2" * 1000
    assert sorted(path.name for path in restored.rglob("*") if path.is_file()) == ["step", "weights.bin"]


def test_nothing_but_plain_files_is_packed(folders: tuple[Path, Path, Path]) -> None:
    folder, saved, _ = folders
    outside = folder.parent / "secret"
    outside.write_text("a secret of the node")
    for make in (
        lambda path: path.symlink_to(outside),
        lambda path: os.link(outside, path),
        lambda path: os.mkfifo(path),
    ):
        make(folder / "it")
        with pytest.raises(NotPacked):
            pack(folder, saved, 1, bytes_max=10_000)
        (folder / "it").unlink()
    (folder / "linked").symlink_to(outside.parent, target_is_directory=True)
    try:
        packed = pack(folder, saved, 1, bytes_max=10_000)
    except NotPacked:
        packed = None
    assert packed is None or b"a secret" not in packed.read_bytes()


def test_a_folder_larger_than_the_limit_leaves_nothing_behind(folders: tuple[Path, Path, Path]) -> None:
    folder, saved, _ = folders
    (folder / "a").write_bytes(b"x" * 60)
    (folder / "b").write_bytes(b"x" * 60)
    with pytest.raises(NotPacked, match="larger"):
        pack(folder, saved, 1, bytes_max=100)
    assert list(saved.iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../b"])
def test_a_packed_name_cannot_climb_out(folders: tuple[Path, Path, Path], name: str) -> None:
    _, saved, restored = folders
    with tarfile.open(saved / "1.tar", "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises((NotPacked, ValueError)):
        unpack(saved / "1.tar", restored, bytes_max=100)
    assert not any(restored.rglob("*"))


def test_a_packed_link_is_refused(folders: tuple[Path, Path, Path]) -> None:
    _, saved, restored = folders
    with tarfile.open(saved / "1.tar", "w") as archive:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(entry)
    with pytest.raises(NotPacked):
        unpack(saved / "1.tar", restored, bytes_max=100)


@pytest.mark.parametrize(("said", "step"), [("12\n", 12), ("", None), (None, None)])
def test_a_script_calls_with_the_number_of_a_step(
    folders: tuple[Path, Path, Path], said: str | None, step: int | None
) -> None:
    folder = folders[0]
    if said is not None:
        (folder / CALL).write_text(said)
    assert called_step(folder) == step


@pytest.mark.parametrize("said", ["-1", "soon", "9" * 30])
def test_a_call_without_a_step_is_refused(folders: tuple[Path, Path, Path], said: str) -> None:
    (folders[0] / CALL).write_text(said)
    with pytest.raises(NotPacked):
        called_step(folders[0])


def test_a_script_that_is_stopped_goes_on_in_another_attempt_from_what_it_kept(home: Path) -> None:
    need(shutil.which("bwrap") is not None, "bubblewrap", "run `apt-get install -y bubblewrap`")
    files = {"main.py": COUNTER.encode()}
    control = plan(SCRIPT, inputs=files, params={"command": ["python3", "main.py"]}, sandboxed=True)
    with serving(control), running(control, home) as attempt:
        attempt.until_log("kept 3")
        until(lambda: control.kept and control.kept[-1][0] == 3, seconds=20, what="the checkpoint of step 3")
        control.stop = True
        assert attempt.wait() == 0
    assert control.finished is not None and control.finished["outcome"] == "stopped"
    go_on(control)
    fetched = list(control.fetched)
    with serving(control), running(control, home.with_name("another node")) as attempt:
        assert attempt.wait() == 0, control.text
    assert control.fetched[len(fetched) :] == ["main.py", "go", "checkpoint"]
    assert "begins at 3" in control.text and "goes on from the checkpoint of step 3" in control.text
    assert control.outputs["n"].content == b"10"


def go_on(control: ControlPlaneStandIn) -> None:
    """The next attempt, which finds a file that says to go on."""
    control.again()
    control.inputs["go"] = b"go"
    entry = dict(control.plan["inputs"][0])
    entry |= {"name": "go", "url": entry["url"].replace("main.py", "go"), "bytes": 2}
    entry["sha256"] = hashlib.sha256(b"go").hexdigest()
    control.plan["inputs"].append(entry)
