"""Placement on a trace: other files of the same format run unchanged, beside no figure of another trace."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import benchmarks.scheduler.__main__ as command
from benchmarks.results import Row
from benchmarks.scheduler.comparison import Trace, policy_rows

NODES = "\n".join(
    ["sn,cpu_milli,memory_mib,gpu,model", *(f"n{i},32000,65536,2,{'T4' if i % 2 else 'A10'}" for i in range(100))]
)
PODS = """name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time
p0,4000,8192,1,1000,T4,LS,Running,0,10,0
p1,4000,8192,1,500,,LS,Running,0,10,0
p2,8000,8192,0,0,,LS,Running,0,10,0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "nodes.csv").write_text(NODES)
    (tmp_path / "small" / "pods_default.csv").write_text(PODS)
    return tmp_path / "small"


def test_a_folder_is_a_trace_and_either_of_its_files_may_be_another(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "pods_shares.csv"
    other.write_text(PODS.replace("1000,T4", "500,T4"))
    assert Trace.at(folder).name == "small/pods_default"
    assert Trace.at(folder, pods=other) == Trace(folder / "nodes.csv", other)
    with pytest.raises(FileNotFoundError, match=r"nodes\.csv is not there"):
        Trace.at(tmp_path)


def test_on_another_trace_nothing_is_held_against_figures_of_the_published_one(folder: Path) -> None:
    rows = policy_rows(Trace.at(folder), ["fgd", "bid-price"], seeds=2)
    assert [row.metric for row in rows] == ["allocated_fgd", "allocated_bid-price", "fgd_seconds_per_seed"]
    for row in rows[:2]:
        assert row.reference == "" and row.target == "" and "small/pods_default" in row.unit
        assert 50 < row.value <= 100


def test_the_command_compares_placement_alone_on_another_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published: dict[str, list[Row]] = {}
    monkeypatch.setattr(command, "publish", published.__setitem__)
    app = typer.Typer()
    app.command()(command.main)
    told = CliRunner().invoke(app, ["--trace", str(folder), "--seeds", "1", "--policy", "best-fit"])
    assert told.exit_code == 0, told.output
    assert [row.metric for row in published["scheduler_placement"]] == ["allocated_best-fit"]
    told = CliRunner().invoke(app, ["--trace", str(folder), "--policy", "worst-fit"])
    assert told.exit_code == 2 and "worst-fit" in told.output
