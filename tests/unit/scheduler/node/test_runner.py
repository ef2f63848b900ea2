import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from scheduler.node.protocol import held_as
from tests.support.attempts import ATTEMPT, TOKEN, ControlPlaneStandIn, is_alive, plan, running, serving, sha256
from tests.support.attempts import home as home
from tests.support.until import until

PROGRAM = "tests.unit.scheduler.node.programs.worker"


def steps(*wanted: list[Any], inputs: dict[str, bytes] | None = None, **changes: Any) -> ControlPlaneStandIn:
    return plan(PROGRAM, inputs=inputs, params={"steps": list(wanted)}, **changes)


def run(control: ControlPlaneStandIn, home: Path) -> dict[str, Any]:
    """Run it to its end; what it reported."""
    with serving(control), running(control, home) as attempt:
        code = attempt.wait()
        assert control.finished is not None, attempt.said()
        assert code == 0, attempt.said()
        return control.finished


def pid_in_log(control: ControlPlaneStandIn, name: str) -> int:
    found = until(lambda: re.search(rf"{name} (\d+)", control.text), seconds=30, what=f"the pid of {name}")
    return int(found[1])


def test_an_attempt_stages_runs_uploads_and_reports(home: Path) -> None:
    control = steps(
        ["read", "卷/data.txt"],
        ["start"],
        ["progress", 1, 2, 0.5],
        ["write", "result.txt", "made here"],
        ["write", "not-named.txt", "stays"],
        ["manifest", "result.txt"],
        inputs={"卷/data.txt": b"the input"},
    )
    finished = run(control, home)
    assert finished["outcome"] == "succeeded" and finished["cause"] == "done" and finished["exit_code"] == 0
    assert control.started == 1
    assert "the input" in control.text
    assert control.progress[-1] == {"step": 1, "total_steps": 2, "metrics": {"loss": 0.5}}
    assert list(control.outputs) == ["result.txt"]
    assert control.outputs["result.txt"].content == b"made here"
    assert control.outputs["result.txt"].meta == {"note": "雪"}
    assert not any((home / "work").iterdir()), "the folder is removed"


def test_the_paid_clock_runs_from_started_to_the_exit(home: Path) -> None:
    finished = run(steps(["sleep", 0.8], ["start"], ["sleep", 0.5]), home)
    assert 450 <= finished["ran_ms"] < 1_200


def test_an_attempt_that_never_starts_costs_nothing(home: Path) -> None:
    finished = run(steps(["sleep", 0.3], ["fail", "model_missing", "no such model"]), home)
    assert (finished["outcome"], finished["cause"], finished["ran_ms"]) == ("failed", "model_missing", 0)
    assert finished["message"] == "no such model"


def test_a_failure_the_program_names_is_reported_in_its_words(home: Path) -> None:
    finished = run(steps(["start"], ["fail", "bad_input", "line 3 is not JSON"]), home)
    assert (finished["cause"], finished["message"], finished["exit_code"]) == ("bad_input", "line 3 is not JSON", 1)


def test_an_exit_code_without_a_word_is_the_programs_failure(home: Path) -> None:
    finished = run(steps(["start"], ["exit", 7]), home)
    assert (finished["cause"], finished["exit_code"]) == ("program_failed", 7)


def test_a_signal_from_elsewhere_is_the_platforms_fault(home: Path) -> None:
    finished = run(steps(["start"], ["signal_self", int(signal.SIGKILL)]), home)
    assert (finished["outcome"], finished["cause"], finished["exit_code"]) == ("failed", "killed", -9)


def test_the_log_survives_a_control_plane_that_is_briefly_away(home: Path) -> None:
    go = home / "go"
    control = steps(["say", "before"], ["say_many", 1500], ["wait_for", str(go)], ["say", "after"])
    with serving(control), running(control, home) as attempt:
        until(lambda: control.heartbeats >= 1, seconds=20, what="a heartbeat")
        control.away = True
        go.touch()
        until(lambda: not program_lives(home), seconds=20, what="the program's end")
        control.away = False
        assert attempt.wait() == 0
    expected = ["before", *(f"line {number}" for number in range(1500)), "after"]
    assert [control.log[seq] for seq in sorted(control.log)] == expected
    assert sorted(control.log) == list(range(1, len(expected) + 1))


def program_lives(home: Path) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if PROGRAM.encode() in command and str(home).encode() in command and is_alive(int(entry.name)):
                return True
    return False


def test_a_lease_that_is_not_renewed_ends_program_and_runner(home: Path) -> None:
    control = steps(["start"], ["ignore_sigterm"], ["child"], ["say_pid", "program"], ["sleep", 600], lease_seconds=3)
    with serving(control), running(control, home) as attempt:
        program, child = pid_in_log(control, "program"), pid_in_log(control, "child")
        control.away = True
        silent_since = time.monotonic()
        assert attempt.wait(20) == 75
        assert time.monotonic() - silent_since < 5
        until(lambda: not is_alive(program), seconds=2, what="the end of the program")
        until(lambda: not is_alive(child), seconds=2, what="the end of the program's child")
    assert control.finished is None
    assert "lease is over" in attempt.said()


def test_a_short_silence_does_not_end_an_attempt(home: Path) -> None:
    control = steps(["start"], ["say", "here"], ["sleep", 4], ["say", "still here"], lease_seconds=6)
    with serving(control), running(control, home) as attempt:
        attempt.until_log("here")
        control.away = True
        away_since = time.monotonic()
        until(lambda: time.monotonic() - away_since > 2.5, seconds=5, what="a silence of 2.5 s")
        control.away = False
        assert attempt.wait() == 0
    assert control.finished is not None and control.finished["outcome"] == "succeeded"
    assert "still here" in control.text


def test_a_lost_fence_ends_program_and_runner_at_once(home: Path) -> None:
    control = steps(["start"], ["ignore_sigterm"], ["say_pid", "program"], ["sleep", 600], lease_seconds=60)
    with serving(control), running(control, home) as attempt:
        program = pid_in_log(control, "program")
        control.fence_lost = True
        assert attempt.wait(10) == 76
        until(lambda: not is_alive(program), seconds=2, what="the end of the program")
    assert control.finished is None


def test_a_killed_runner_leaves_nothing_behind(home: Path) -> None:
    control = steps(["start"], ["ignore_sigterm"], ["say_pid", "program"], ["sleep", 600])
    with serving(control), running(control, home) as attempt:
        program = pid_in_log(control, "program")
        attempt.process.kill()
        until(lambda: not is_alive(program), seconds=5, what="the end of the program")
    with serving(control), running(control, home) as attempt:
        control.stop = True
        assert attempt.wait() == 0
    assert not any((home / "work").iterdir()), "the next runner swept the folder"


def test_a_stopped_runner_is_killed_by_the_kernel_soon_after_its_lease(home: Path) -> None:
    control = steps(["start"], ["say_pid", "program"], ["sleep", 600], lease_seconds=2)
    with serving(control), running(control, home) as attempt:
        program = pid_in_log(control, "program")
        os.kill(attempt.process.pid, signal.SIGSTOP)
        assert attempt.wait(8) == -signal.SIGKILL
        until(lambda: not is_alive(program), seconds=3, what="the end of the program")


def test_a_stop_gives_grace_and_then_kills(home: Path) -> None:
    control = steps(["start"], ["ignore_sigterm"], ["say", "deaf"], ["sleep", 600])
    control.grace_seconds = 1
    with serving(control), running(control, home) as attempt:
        attempt.until_log("deaf")
        control.stop = True
        assert attempt.wait(15) == 0
    assert control.finished is not None
    assert (control.finished["outcome"], control.finished["exit_code"]) == ("stopped", -9)


@pytest.mark.parametrize("told_first", ["runner", "program"])
def test_a_runner_terminated_by_its_node_never_takes_a_cut_off_program_for_done(home: Path, told_first: str) -> None:
    """Ray sends SIGTERM to the runner and to all below it; a program that then exits with 0 has not done its work."""
    control = steps(["start"], ["done_on_sigterm"], ["say_pid", "program"], ["sleep", 600])
    with serving(control), running(control, home) as attempt:
        pids = [attempt.process.pid, pid_in_log(control, "program")]
        for pid in pids if told_first == "runner" else reversed(pids):
            os.kill(pid, signal.SIGTERM)
        assert attempt.wait(30) == 0
    assert control.finished is not None
    assert (control.finished["outcome"], control.finished["cause"]) == ("stopped", "killed")
    assert "the node's runtime ended it" in control.finished["message"]
    assert control.outputs == {}


def test_a_terminated_runner_gives_its_program_its_grace(home: Path) -> None:
    control = steps(["start"], ["say", "here"], ["sleep", 600])
    with serving(control), running(control, home) as attempt:
        attempt.until_log("here")
        attempt.process.terminate()
        assert attempt.wait(30) == 0
    assert control.finished is not None
    assert (control.finished["outcome"], control.finished["exit_code"]) == ("stopped", -signal.SIGTERM)


def test_a_stop_before_the_program_starts_stages_nothing(home: Path) -> None:
    control = steps(["start"], inputs={"big": b"x" * 4_000_000})
    control.cut_inputs_after = 10
    control.stop = True
    finished = run(control, home)
    assert (finished["outcome"], finished["ran_ms"], finished["exit_code"]) == ("stopped", 0, None)


def test_a_program_ends_at_its_time_limit(home: Path) -> None:
    finished = run(steps(["start"], ["sleep", 600], max_runtime_seconds=1), home)
    assert (finished["outcome"], finished["cause"]) == ("failed", "time_limit")
    assert 1_000 <= finished["ran_ms"] < 6_000


def test_an_input_resumes_where_its_connection_broke(home: Path) -> None:
    content = bytes(range(256)) * 40
    control = steps(["start"], inputs={"data": content})
    control.cut_inputs_after = 4_000
    assert run(control, home)["outcome"] == "succeeded"
    assert control.ranges == ["bytes=4000-", "bytes=8000-"]


def test_the_next_attempt_on_the_node_copies_what_is_there_and_the_runner_says_what_is(home: Path) -> None:
    (home / "models" / "small").mkdir(parents=True)
    (home / "models" / "small" / "config.json").write_text("{}")
    content = b"frames " * 20_000
    control = steps(["start"], inputs={"a": content}, model="small")
    run(control, home)
    assert control.fetched == ["a"]
    [told] = control.inventories
    assert told["files"] == [held_as(control.plan["firm_id"], sha256(content))]
    assert (told["worker"], told["models"], told["warm"]) == (0, ["small"], ["small"])
    for firm, fetched in ((control.plan["firm_id"], ["a"]), ("firm_of_others", ["a", "a"])):
        control.again()
        control.plan["firm_id"] = firm
        run(control, home)
        assert control.fetched == fetched, firm


def test_an_input_with_a_wrong_hash_is_fetched_again(home: Path) -> None:
    control = steps(["read", "data"], inputs={"data": b"right"})
    control.spoil_inputs = 1
    assert run(control, home)["outcome"] == "succeeded"
    assert "wrong hash" in control.text and "right" in control.text


def test_an_input_that_stays_wrong_is_the_platforms_fault(home: Path) -> None:
    control = steps(["start"], inputs={"data": b"right"})
    control.spoil_inputs = 100
    finished = run(control, home)
    assert (finished["cause"], finished["ran_ms"], control.started) == ("input_unavailable", 0, 0)


def test_uploads_and_the_ending_are_repeated_until_they_arrive(home: Path) -> None:
    control = steps(["start"], ["write", "a", "1"], ["manifest", "a"])
    control.failing_outputs = 2
    control.failing_finished = 2
    assert run(control, home)["outcome"] == "succeeded"
    assert control.outputs["a"].content == b"1"


def test_too_much_output_is_refused(home: Path) -> None:
    control = steps(["start"], ["write", "a", "12345"], ["manifest", "a"], output_bytes_max=4)
    finished = run(control, home)
    assert (finished["outcome"], finished["cause"]) == ("failed", "output_refused")
    assert control.outputs == {}


def test_only_a_replica_host_sees_the_attempts_token(home: Path) -> None:
    job = steps(["environment"])
    run(job, home)
    assert TOKEN not in job.text and "the-cluster-secret" not in job.text and "HELIU_CONTROL_URL" not in job.text
    replica = steps(["environment"], kind="replica")
    run(replica, home)
    assert TOKEN in replica.text and "the-cluster-secret" not in replica.text


def test_a_second_runner_of_the_same_attempt_leaves_the_first_alone(home: Path) -> None:
    control = steps(["start"], ["say", "first"], ["sleep", 600])
    control.grace_seconds = 0
    with serving(control), running(control, home) as first:
        first.until_log("first")
        with running(control, home) as second:
            assert second.wait(20) == 78
        assert first.process.poll() is None
        assert (home / "work" / ATTEMPT / "plan.json").exists()
        control.stop = True
        assert first.wait(15) == 0


@pytest.mark.parametrize("missing", ["HELIU_CONTROL_URL", "HELIU_ATTEMPT_TOKEN"])
def test_a_runner_without_its_environment_says_what_is_missing(home: Path, missing: str) -> None:
    control = steps(["start"])
    with serving(control), running(control, home, environment={missing: ""}) as attempt:
        assert attempt.wait(20) == 77
        assert missing in attempt.said()


def test_a_refused_plan_ends_the_runner(home: Path) -> None:
    control = steps(["start"])
    with serving(control), running(control, home, environment={"HELIU_ATTEMPT_TOKEN": "ha_wrong"}) as attempt:
        assert attempt.wait(20) == 77
    assert "unauthenticated" in attempt.said()
    assert "ha_wrong" not in attempt.said()
