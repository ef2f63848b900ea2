"""What a line of `sacct -P` says, and what is wrong with one that says nothing."""

from datetime import UTC, datetime

import pytest

from kit.errors import InvalidInput
from quotas.sacct import NEEDED, Skip, SlurmJob, read_header, read_job, zone_named

HEADER = read_header("|".join(NEEDED), zone_named("Asia/Shanghai"))


def line(**changes: str) -> str:
    fields = {
        "JobID": "42",
        "Account": "studio",
        "Partition": "a100",
        "State": "COMPLETED",
        "Start": "2026-11-01T08:00:00",
        "End": "2026-11-01T09:30:00",
        "AllocTRES": "billing=8,cpu=8,gres/gpu=2,mem=64G,node=1",
        **changes,
    }
    return "|".join(fields[name] for name in NEEDED)


def test_a_job_is_read_with_its_times_in_the_zone_of_the_cluster() -> None:
    job = read_job(line(), HEADER)
    assert job == SlurmJob(
        "42", "studio", "a100", 2, datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 1, 1, 30, tzinfo=UTC)
    )
    utc = read_job(line(), read_header("|".join(NEEDED), zone_named("UTC")))
    assert isinstance(utc, SlurmJob) and utc.started_at == datetime(2026, 11, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("tres", "gpus"),
    [
        ("gres/gpu=8", 8),
        ("cpu=1,gres/gpu:a100=3,gres/gpu:v100=1", 4),
        ("gres/gpu:a100=4,gres/gpu=4", 4),
        ("gres/gpumem=80,gres/gpu=1", 1),
    ],
)
def test_gpus_are_counted_once_however_they_are_written(tres: str, gpus: int) -> None:
    job = read_job(line(AllocTRES=tres), HEADER)
    assert isinstance(job, SlurmJob) and job.gpus == gpus


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"JobID": "42.batch"}, Skip.STEP),
        ({"JobID": "42_7.extern"}, Skip.STEP),
        ({"State": "RUNNING", "End": "Unknown"}, Skip.UNFINISHED),
        ({"State": "CANCELLED by 1000", "Start": "None"}, Skip.NEVER_RAN),
        ({"AllocTRES": "cpu=8,mem=1G"}, Skip.NO_GPU),
        ({"AllocTRES": ""}, Skip.NO_GPU),
        ({"End": "2026-11-01T08:00:00"}, Skip.NEVER_RAN),
    ],
)
def test_a_line_with_nothing_to_charge_says_why(changes: dict[str, str], why: Skip) -> None:
    assert read_job(line(**changes), HEADER) is why


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"JobID": "abc"}, "JobID 'abc' is none"),
        ({"Start": "2026-13-01T00:00:00"}, "Start '2026-13-01T00:00:00' is no time"),
        ({"End": "Unknown"}, "End 'Unknown' is no time"),
        ({"Start": "2026-11-01T08:00:00+08:00"}, "is no time"),
        ({"End": "2026-11-01T07:59:59"}, "before it starts"),
        ({"Account": ""}, "empty"),
        ({"State": ""}, "State is empty"),
        ({"Account": "a|b"}, "8 fields, the header 7"),
        ({"AllocTRES": "gres/gpu=100001"}, "at most"),
        ({"Start": "2027-02-29T00:00:00"}, "is no time"),
    ],
)
def test_a_bad_line_says_what_is_wrong(changes: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("|", r"\|")):
        read_job(line(**changes), HEADER)


def test_fields_are_found_by_name_in_any_order_beside_others() -> None:
    names = ["User", *reversed(NEEDED), "Elapsed"]
    header = read_header("\ufeff" + "|".join(names), zone_named("Asia/Shanghai"))
    values = dict(zip(NEEDED, line().split("|"), strict=True))
    job = read_job("|".join(values.get(name, "x") for name in names), header)
    assert isinstance(job, SlurmJob) and job.job_id == "42"


@pytest.mark.parametrize(
    ("header", "said"), [("JobID|Account", "Partition, State"), ("", "missing"), ("|".join((*NEEDED, "End")), "twice")]
)
def test_a_header_that_is_none_is_named(header: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_header(header, zone_named("UTC"))


def test_a_zone_with_summer_time_is_refused() -> None:
    with pytest.raises(InvalidInput, match="Asia/Shanghai or UTC"):
        zone_named("Europe/Berlin")
