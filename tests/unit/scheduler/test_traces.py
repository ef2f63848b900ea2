"""Public traces: what the columns mean, and a wrong line is named."""

from datetime import timedelta
from pathlib import Path

import pytest

from kit.errors import InvalidInput
from quotas.vocabulary import QoS
from scheduler.cycle import Policy
from scheduler.recording import scenario_of
from scheduler.simulation import simulate
from scheduler.traces import START, read_trace

NODES = """sn,cpu_milli,memory_mib,gpu,model
n0,64000,262144,2,P100
n1,96000,393216,8,G2
n2,96000,393216,8,G2
n3,32000,65536,0,
"""
TASKS = """name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time
t0,4000,8192,1,460,,LS,Succeeded,100,400,130
t1,8000,16384,8,1000,G2,BE,Failed,90,190,90
t2,1000,1024,0,0,,LS,Running,5,15.4,5
t3,1000,1024,1,1000,,BE,Pending,7,20,
"""


def trace(folder: Path, tasks: str = TASKS, nodes: str = NODES) -> tuple[Path, Path]:
    (folder / "openb.csv").write_text(nodes)
    (folder / "tasks.csv").write_text(tasks)
    return folder / "openb.csv", folder / "tasks.csv"


def test_nodes_of_a_model_are_a_pool_and_what_never_ran_is_left_out(tmp_path: Path) -> None:
    recording = read_trace(*trace(tmp_path))
    assert [(node.id, node.pool, node.gpu_milli) for node in recording.nodes] == [
        ("n0", "openb/p100", 2000), ("n1", "openb/g2", 8000), ("n2", "openb/g2", 8000), ("n3", "openb/cpu", 0),
    ]  # fmt: skip
    told = [(work.id, work.firm_id, work.gpu_milli, work.qos, work.ran_seconds) for work in recording.work]
    assert told == [
        ("t2", "firm_ls", 0, QoS.STANDARD, 10),
        ("t1", "firm_be", 8000, QoS.INTERRUPTIBLE, 100),
        ("t0", "firm_ls", 460, QoS.STANDARD, 270),
    ]
    assert recording.work[1].pools == ["openb/g2"]
    assert recording.work[2].pools == ["openb/p100", "openb/g2", "openb/cpu"]
    assert recording.work[2].submitted_at == START + timedelta(seconds=100)


def test_firms_are_promised_their_part_of_the_gpu_time_asked_for(tmp_path: Path) -> None:
    quotas = {(q.firm_id, q.pool): q.nominal_milli for q in read_trace(*trace(tmp_path)).quotas}
    asked_ls, asked_be = 460 * 270, 8000 * 100
    assert quotas["firm_be", "openb/g2"] == 16_000 - quotas["firm_ls", "openb/g2"], "nothing is lost in rounding"
    assert quotas["firm_ls", "openb/p100"] == 2000 * asked_ls // (asked_be + asked_ls)


def test_a_trace_can_be_played_on_a_part_of_its_nodes(tmp_path: Path) -> None:
    recording = read_trace(*trace(tmp_path), every=2)
    assert [node.id for node in recording.nodes] == ["n0", "n2"]
    lives = simulate(scenario_of(recording), Policy()).lives
    assert all(life.ended_at for life in lives.values())


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("t1,8000", "t1,many", r"tasks\.csv, line 3: cpu_milli is 'many', expected a whole number"),
        ("t1,8000", "t1,-8000", r"line 3: cpu_milli is '-8000', expected a whole number"),
        ("90,190,90", "90,soon,90", r"line 3: deletion_time is 'soon', expected seconds"),
        ("90,190,90", "90,nan,90", r"line 3: deletion_time is 'nan', expected seconds"),
        ("90,190,90", "90,80,90", r"line 3: it was deleted before it was scheduled"),
        ("1,460", "1,1460", r"line 2: gpu_milli is 1460, expected 1 to 1000"),
        ("5,15.4,5", "5,15.4", r"line 4: 10 fields, expected 11"),
        ("5,15.4,5", "5,15.4,5,6", r"line 4: 12 fields, expected 11"),
        ("creation_time", "created", r"has no column creation_time"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, old: str, new: str, what: str) -> None:
    assert old in TASKS
    with pytest.raises(InvalidInput, match=what):
        read_trace(*trace(tmp_path, TASKS.replace(old, new)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nodes\.csv cannot be read"):
        read_trace(tmp_path / "nodes.csv", tmp_path / "tasks.csv")
