"""An attempt of several workers on a real Ray cluster: all of them or none, and none outlives the lease."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.attempts import ControlPlaneStandIn, RunningAttempt, is_alive, plan, running, serving
from tests.support.real_ray import RealRay, real_ray
from tests.support.until import until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500, func_only=True)]

PROGRAM = "tests.unit.scheduler.node.programs.worker"
START_SECONDS = 120


@pytest.fixture(scope="module")
def ray() -> Iterator[RealRay]:
    with real_ray() as cluster:
        yield cluster


def node_id(ray: RealRay) -> str:
    headers = {"Authorization": f"Bearer {ray.token}"}
    answer = httpx.get(f"{ray.url}/api/v0/nodes", params={"detail": "true"}, headers=headers, timeout=10)
    return answer.json()["data"]["result"]["result"][0]["node_id"]


def gang(ray: RealRay, *steps: list[Any], **changes: Any) -> ControlPlaneStandIn:
    """Two workers, a slot each, on the cluster's one node."""
    return plan(
        PROGRAM,
        params={"steps": list(steps)},
        **{"workers": 2, "nodes": [node_id(ray)] * 2, "worker_resources": {"slot": 1.0}, "lease_seconds": 30} | changes,
    )


@contextmanager
def attempt_of(ray: RealRay, control: ControlPlaneStandIn, home: Path) -> Iterator[RunningAttempt]:
    environment = {
        "RAY_ADDRESS": f"127.0.0.1:{ray.gcs_port}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": ray.token,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with serving(control), running(control, home, environment=environment) as attempt:
        yield attempt


def program_pids(control: ControlPlaneStandIn) -> list[int]:
    """The programs of both workers, once both have said theirs."""

    def said() -> list[str] | None:
        pids = re.findall(r"program (\d+)", control.text)
        return pids if len(pids) == 2 else None

    return [int(pid) for pid in until(said, seconds=START_SECONDS, what="two programs")]


def test_both_workers_run_know_each_other_and_store_their_files(ray: RealRay, tmp_path: Path) -> None:
    inputs = {"data.txt": b"shared"}
    control = plan(
        PROGRAM,
        inputs=inputs,
        params={
            "steps": [["start"], ["rank"], ["read", "data.txt"], ["write", "out.txt", "x"], ["manifest", "out.txt"]]
        },
        workers=2,
        nodes=[node_id(ray)] * 2,
        worker_resources={"slot": 1.0},
        lease_seconds=30,
    )
    with attempt_of(ray, control, tmp_path / "home") as attempt:
        assert attempt.wait(START_SECONDS) == 0, attempt.said()
    assert control.finished is not None
    assert (control.finished["outcome"], control.finished["exit_code"]) == ("succeeded", 0), control.text
    told = [json.loads(line.split(" ", 1)[1]) for line in control.text.splitlines() if "WORLD_SIZE" in line]
    assert sorted(worker["RANK"] for worker in told) == ["0", "1"]
    assert {worker["WORLD_SIZE"] for worker in told} == {"2"}
    assert len({(worker["MASTER_ADDR"], worker["MASTER_PORT"]) for worker in told}) == 1
    assert control.text.count("shared") == 2 and control.started == 1
    assert set(control.outputs) == {"worker-0/out.txt", "worker-1/out.txt"}
    assert not any((tmp_path / "home" / "work").glob("att_*")), "every worker's folder is removed"


def test_when_one_worker_fails_the_others_end(ray: RealRay, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    control = gang(ray, ["start"], ["say_pid", "program"], ["first_fails", str(gate)], ["sleep", 600])
    with attempt_of(ray, control, tmp_path / "home") as attempt:
        pids = program_pids(control)
        assert attempt.wait(60) == 0, attempt.said()
        assert not any(map(is_alive, pids))
    assert control.finished is not None
    assert (control.finished["outcome"], control.finished["cause"]) == ("failed", "bad_input")
    assert control.finished["message"] == "the first one"


@pytest.mark.parametrize("end", ["killed", "silent"])
def test_no_worker_outlives_its_runner_or_its_lease(ray: RealRay, tmp_path: Path, end: str) -> None:
    control = gang(ray, ["start"], ["ignore_sigterm"], ["say_pid", "program"], ["sleep", 600], lease_seconds=8)
    with attempt_of(ray, control, tmp_path / "home") as attempt:
        pids = program_pids(control)
        if end == "killed":
            attempt.process.kill()
        else:
            control.away = True
            assert attempt.wait(30) == 75
        until(lambda: not any(map(is_alive, pids)), seconds=15, what="the end of both programs")
    assert control.finished is None


def test_a_terminated_gang_gives_its_programs_their_grace_and_says_so(ray: RealRay, tmp_path: Path) -> None:
    """Ray's own handler, which its driver puts in place, would end the runner without a word."""
    control = gang(ray, ["start"], ["done_on_sigterm"], ["say_pid", "program"], ["sleep", 600])
    with attempt_of(ray, control, tmp_path / "home") as attempt:
        program_pids(control)
        attempt.process.terminate()
        assert attempt.wait(60) == 0, attempt.said()
    assert control.finished is not None
    assert (control.finished["outcome"], control.finished["cause"]) == ("stopped", "killed")


def test_a_gang_that_is_stopped_while_it_brings_its_inputs_waits_for_nobody(ray: RealRay, tmp_path: Path) -> None:
    control = gang(ray, ["start"], inputs={"big": b"x" * 4_000_000})
    control.cut_inputs_after = 10
    with attempt_of(ray, control, tmp_path / "home") as attempt:
        until(lambda: len(control.fetched) > 1, seconds=START_SECONDS, what="both workers at their inputs")
        control.stop = True
        assert attempt.wait(15) == 0, attempt.said()
    assert control.finished is not None
    assert (control.finished["outcome"], control.finished["ran_ms"]) == ("stopped", 0)


def test_a_plan_without_a_node_for_each_worker_starts_none(ray: RealRay, tmp_path: Path) -> None:
    control = gang(ray, ["start"], nodes=[node_id(ray)])
    with attempt_of(ray, control, tmp_path / "home") as attempt:
        assert attempt.wait(START_SECONDS) == 0, attempt.said()
    assert control.finished is not None
    assert (control.finished["cause"], control.finished["ran_ms"], control.started) == ("setup_failed", 0, 0)
