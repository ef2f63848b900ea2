"""Files of `sacct -P`: whose the jobs in them are, and what is wrong with them, line by line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from kit.errors import InvalidInput
from kit.units import MAX_AMOUNT, GpuMs
from quotas.sacct import Header, Skip, SlurmJob, read_header, read_job, zone_named
from quotas.vocabulary import FirmId, PoolName, ProjectId, QoS

FAULTS_SHOWN = 20
LINE_MAX = 20_000


@dataclass(frozen=True, slots=True)
class ImportTerms:
    """Whose the jobs are: Slurm account → firm and project, partition → pool. `source` names the cluster for ever."""

    source: str
    accounts: Mapping[str, tuple[FirmId, ProjectId]]
    partitions: Mapping[str, PoolName]
    qos: QoS = QoS.STANDARD
    timezone: str = "Asia/Shanghai"


def check_file(path: Path, terms: ImportTerms, *, now: datetime) -> Mapping[str, int]:
    """Read all of a file; returns how many lines have nothing to charge, by why.

    Raises InvalidInput naming the bad lines by number and reason: then nothing of it has been taken. Blocks.
    """
    faults: list[tuple[int, str]] = []
    skipped: dict[str, int] = {}
    seen: dict[str, SlurmJob] = {}
    for number, job in _read(path, terms, faults):
        if isinstance(job, Skip):
            skipped[job] = skipped.get(job, 0) + 1
        elif job.account not in terms.accounts:
            faults.append((number, f"account {job.account!r} is no firm's; map it: --account {job.account}=firm_…"))
        elif job.partition not in terms.partitions:
            faults.append((number, f"partition {job.partition!r} is no pool; map it: --partition {job.partition}=…"))
        elif job.ended_at > now:
            faults.append((number, f"it ends at {job.ended_at.isoformat()}, which is still to come"))
        elif (took := gpu_ms_of(job)) > MAX_AMOUNT:
            faults.append((number, f"job {job.job_id} took {took} GPU-milliseconds, more than the books can hold"))
        elif seen.setdefault(job.job_id, job) != job:
            faults.append((number, f"job {job.job_id} is in the file before, with other content"))
    if faults:
        raise _refusal(faults)
    return skipped


def _refusal(faults: Sequence[tuple[int, str]]) -> InvalidInput:
    number, reason = faults[0]
    more = f"; {len(faults) - 1} more lines are wrong" if len(faults) > 1 else ""
    return InvalidInput(
        f"line {number}: {reason}{more}. Nothing was imported.",
        code="bad_line",
        hint="mend the file and send it again; what was imported before is not charged twice",
        details={"lines": [{"line": line, "reason": why} for line, why in faults[:FAULTS_SHOWN]]},
    )


def _read(path: Path, terms: ImportTerms, faults: list[tuple[int, str]]) -> Iterator[tuple[int, SlurmJob | Skip]]:
    """(line number, what it says) of every good line; the others are added to `faults`."""
    header: Header | None = None
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LINE_MAX):
            number += 1
            try:
                line = raw.decode().rstrip("\r\n")
                if len(raw) == LINE_MAX:
                    faults.append((number, f"it is longer than {LINE_MAX} bytes"))
                    break
                if header is None:
                    header = read_header(line, zone_named(terms.timezone))
                elif line:
                    yield number, read_job(line, header)
            except UnicodeDecodeError:
                faults.append((number, "it is no UTF-8 text"))
            except ValueError as error:
                faults.append((number, str(error)))
    if header is None:
        raise InvalidInput("the file is empty", hint="sacct -P -X writes a header first")


def read_jobs(path: Path, terms: ImportTerms) -> Iterator[SlurmJob]:
    """The jobs of a checked file, in its order."""
    return (job for _, job in _read(path, terms, []) if isinstance(job, SlurmJob))


def gpu_ms_of(job: SlurmJob) -> GpuMs:
    """GPU time a job took."""
    return GpuMs(job.gpus * ((job.ended_at - job.started_at) // timedelta(milliseconds=1)))
