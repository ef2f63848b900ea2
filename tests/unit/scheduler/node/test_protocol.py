import pytest
from pydantic import ValidationError

from scheduler.node.protocol import Cause, FinishedIn, HeartbeatIn, Outcome, Plan, plain_name

PLAN = {
    "attempt_id": "att_1",
    "workload_id": "job_1",
    "kind": "job",
    "program": "scheduler.node.recipes.script.program",
    "params": {},
    "sandboxed": True,
    "lease_seconds": 30,
    "heartbeat_seconds": 2,
    "grace_seconds": 5,
    "gpu_milli": 1000,
    "firm_id": "firm_1",
}


def test_a_plan_survives_the_wire() -> None:
    plan = Plan.model_validate(PLAN)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    "change",
    [{"surprise": 1}, {"lease_seconds": "30"}, {"lease_seconds": 0}, {"program": "os;rm"}, {"workers": 0}],
)
def test_a_plan_with_anything_unknown_or_out_of_range_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate({**PLAN, **change})


def test_enums_are_read_from_json_bodies_already_parsed() -> None:
    report = FinishedIn.model_validate({"outcome": "failed", "cause": "bad_input", "ran_ms": 12})
    assert (report.outcome, report.cause) == (Outcome.FAILED, Cause.BAD_INPUT)


def test_a_heartbeat_carries_a_bounded_log() -> None:
    lines = [{"seq": n + 1, "text": "x"} for n in range(501)]
    with pytest.raises(ValidationError):
        HeartbeatIn.model_validate({"log": lines})
    assert len(HeartbeatIn.model_validate({"log": lines[:500]}).log) == 500


@pytest.mark.parametrize("name", ["a", "a/b.txt", "镜头 01.png", ".hidden", "a.b/c-d_e"])
def test_plain_names_are_kept(name: str) -> None:
    assert plain_name(name) == name


def test_a_name_is_normalised_to_nfc() -> None:
    assert plain_name("e\u0301.txt") == "\u00e9.txt"


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "a\nb", "a\0b", "a\u202eb", " a", "a ", "\ud800",
     "x" * 256, "/".join("a" * 17)],
)  # fmt: skip
def test_names_that_climb_hide_or_confuse_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"a file name|surrogates"):
        plain_name(name)


def test_only_the_platforms_own_causes_are_its_fault() -> None:
    firms = {Cause.BAD_INPUT, Cause.BAD_PARAMS, Cause.PROGRAM_FAILED, Cause.OUT_OF_MEMORY, Cause.OUTPUT_REFUSED}
    firms |= {Cause.DONE, Cause.STOPPED, Cause.TIME_LIMIT}
    assert {cause for cause in Cause if not cause.is_platform_fault} == firms
