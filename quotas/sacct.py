"""Reading what Slurm's `sacct -P` prints: one job per line, fields apart by `|`, named by the header. Pure.

Times are local to the cluster and carry no zone, so the caller says which one they are in.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timezone
from enum import StrEnum

from kit.errors import InvalidInput
from quotas.pricing import SHANGHAI

NEEDED: tuple[str, ...] = ("JobID", "Account", "Partition", "State", "Start", "End", "AllocTRES")
ZONES: Mapping[str, timezone] = {"Asia/Shanghai": SHANGHAI, "UTC": UTC}
"""Zones without summer time only: in others an hour a year happens twice."""
_JOB = re.compile(r"^\d+(_\d+|\+\d+)?$")
_STEP = re.compile(r"^\d+(_\d+|\+\d+)?\.\w+$")
_GPUS = re.compile(r"(?:^|,)gres/gpu=(\d+)(?=,|$)")
_TYPED_GPUS = re.compile(r"(?:^|,)gres/gpu:[\w.-]+=(\d+)(?=,|$)")
_UNFINISHED = frozenset({"PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "RESIZING", "COMPLETING"})
_NEVER = frozenset({"", "None", "Unknown"})
GPUS_MAX = 100_000


class Skip(StrEnum):
    """Why a good line has nothing to charge."""

    STEP = "step"
    UNFINISHED = "unfinished"
    NEVER_RAN = "never_ran"
    NO_GPU = "no_gpu"


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A job that ended and had GPUs."""

    job_id: str
    account: str
    partition: str
    gpus: int
    started_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class Header:
    """Where the fields are, and in which zone times are written."""

    columns: Mapping[str, int]
    width: int
    zone: timezone


def zone_named(name: str) -> timezone:
    """The zone of a cluster. Raises InvalidInput."""
    if name not in ZONES:
        raise InvalidInput(f"{name!r} is no time zone that is known here; use {' or '.join(ZONES)}")
    return ZONES[name]


def read_header(line: str, zone: timezone) -> Header:
    """The header of `sacct -P`. Raises InvalidInput naming what is missing or there twice."""
    names = line.lstrip("\ufeff").split("|")
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise InvalidInput(
            f"line 1 is no header of sacct -P: {', '.join(missing)} is missing",
            hint=f"sacct -P -X --format={','.join(NEEDED)}",
        )
    if doubled := [name for name in NEEDED if names.count(name) > 1]:
        raise InvalidInput(f"line 1 names {', '.join(doubled)} twice", hint="name each column of sacct -o once")
    return Header({name: names.index(name) for name in NEEDED}, len(names), zone)


def read_job(line: str, header: Header) -> SlurmJob | Skip:
    """One line. Raises ValueError saying what is wrong with it and what was expected."""
    fields = line.split("|")
    if len(fields) != header.width:
        raise ValueError(f"it has {len(fields)} fields, the header {header.width}")
    job_id, account, partition, state, start, end, tres = (fields[header.columns[name]].strip() for name in NEEDED)
    if _STEP.match(job_id):
        return Skip.STEP
    if not _JOB.match(job_id):
        raise ValueError(f"JobID {job_id!r} is none; expected 123, 123_4 or 123+4")
    if not state:
        raise ValueError("State is empty")
    if state.split()[0] in _UNFINISHED:
        return Skip.UNFINISHED
    if start in _NEVER:
        return Skip.NEVER_RAN
    started_at, ended_at = _instant("Start", start, header.zone), _instant("End", end, header.zone)
    if ended_at < started_at:
        raise ValueError(f"it ends at {end} before it starts at {start}")
    gpus = _gpus(tres)
    if gpus == 0 or started_at == ended_at:
        return Skip.NO_GPU if gpus == 0 else Skip.NEVER_RAN
    if not account or not partition:
        raise ValueError("Account or Partition is empty")
    return SlurmJob(job_id, account, partition, gpus, started_at, ended_at)


def _instant(name: str, text: str, zone: timezone) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=zone)
    except ValueError:
        raise ValueError(f"{name} {text!r} is no time; expected 2026-11-01T08:00:00") from None


def _gpus(tres: str) -> int:
    found: Sequence[str] = _GPUS.findall(tres) or _TYPED_GPUS.findall(tres)
    gpus = sum(int(count) for count in found)
    if gpus > GPUS_MAX:
        raise ValueError(f"AllocTRES says {gpus} GPUs; at most {GPUS_MAX} can be")
    return gpus
