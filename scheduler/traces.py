"""Public traces as recordings: nodes and tasks in the columns of openb (Alibaba GPU-v2023), as CSV.

The trace names no firms and no quotas. Its classes of service stand for firms of one cohort, and each is promised the
part of every pool that is its part of all GPU time asked for. Nodes of one GPU model are a pool. What never ran is left
out; how long the rest ran is taken to have been known. Second 0 is the start of 2023.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kit.errors import InvalidInput
from quotas.vocabulary import QoS
from scheduler.recording import RecordedNode, RecordedQuota, RecordedSeat, RecordedWork, Recording

NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
TASK_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec")
TIME_COLUMNS = ("qos", "creation_time", "deletion_time", "scheduled_time")
START = datetime(2023, 1, 1, tzinfo=UTC)
COHORT = "trace"
CLASS_OF = {"BE": QoS.INTERRUPTIBLE}
"""What is best effort there is interruptible here; everything else is standard."""
_MILLI_PER_GPU = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a CSV file, which says where it is when it is wrong."""

    path: Path
    line: int
    fields: Mapping[str, str]

    def text(self, column: str) -> str:
        """What stands in a column."""
        return self.fields[column]

    def count(self, column: str) -> int:
        """A whole number from 0 on. Raises InvalidInput."""
        value = self.fields[column]
        if not value.isdecimal():
            raise self.wrong(f"{column} is {value!r}, expected a whole number")
        return int(value)

    def seconds(self, column: str) -> float:
        """A time since the start of the trace. Raises InvalidInput."""
        value = self.fields[column]
        if not value.replace(".", "", 1).isdecimal():
            raise self.wrong(f"{column} is {value!r}, expected seconds")
        return float(value)

    def wrong(self, what: str) -> InvalidInput:
        """The refusal of this line."""
        return InvalidInput(f"{self.path}, line {self.line}: {what}")


def rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The lines of a CSV file with at least these columns. Raises InvalidInput that names the line."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise InvalidInput(f"{path} has no column {', '.join(missing)}", hint=f"expected {','.join(columns)}")
            width = len(reader.fieldnames or ())
            for fields in reader:
                row = Row(path, reader.line_num, fields)
                found = width - list(fields.values()).count(None) + len(fields.get(None) or ())  # type: ignore[arg-type]
                if found != width:
                    raise row.wrong(f"{found} fields, expected {width}")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error


def read_trace(nodes: Path, tasks: Path, *, every: int = 1) -> Recording:
    """The trace on every `every`-th of its nodes. Raises InvalidInput that names the line."""
    fleet = [_node(row) for n, row in enumerate(rows(nodes, NODE_COLUMNS)) if n % every == 0]
    pools = list(dict.fromkeys(node.pool for node in fleet))
    work = [
        task
        for row in rows(tasks, (*TASK_COLUMNS, *TIME_COLUMNS))
        if (task := _task(row, pools, nodes.stem)) is not None
    ]
    firms = sorted({task.firm_id for task in work})
    return Recording(
        nodes=fleet,
        quotas=_quotas(fleet, work),
        tree=[RecordedSeat(node=COHORT, parent=None), *(RecordedSeat(node=firm, parent=COHORT) for firm in firms)],
        work=sorted(work, key=lambda task: (task.submitted_at, task.id)),
    )


def _node(row: Row) -> RecordedNode:
    return RecordedNode(
        id=row.text("sn"),
        pool=_pool(row.path.stem, row.text("model")),
        gpu_milli=row.count("gpu") * _MILLI_PER_GPU,
        cpu_milli=row.count("cpu_milli"),
        memory_mib=row.count("memory_mib"),
    )


def _task(row: Row, pools: Sequence[str], centre: str) -> RecordedWork | None:
    """None: it was deleted before it ran, or accepts no model of these nodes."""
    if not row.text("scheduled_time"):
        return None
    submitted = row.seconds("creation_time")
    ran = round(row.seconds("deletion_time") - row.seconds("scheduled_time"))
    if ran < 0:
        raise row.wrong("it was deleted before it was scheduled")
    accepted = {_pool(centre, model) for model in row.text("gpu_spec").split("|") if model}
    liked = [pool for pool in pools if not accepted or pool in accepted]
    gpus, milli = row.count("num_gpu"), row.count("gpu_milli")
    if gpus and not 0 < milli <= _MILLI_PER_GPU:
        raise row.wrong(f"gpu_milli is {milli}, expected 1 to {_MILLI_PER_GPU}")
    if not liked:
        return None
    return RecordedWork(
        id=row.text("name"),
        firm_id=f"firm_{row.text('qos').lower()}",
        pools=liked,
        gpu_milli=gpus * milli if gpus else 0,
        cpu_milli=row.count("cpu_milli"),
        memory_mib=row.count("memory_mib"),
        qos=CLASS_OF.get(row.text("qos"), QoS.STANDARD),
        submitted_at=START + timedelta(seconds=submitted),
        expected_seconds=max(1, ran),
        ran_seconds=ran,
    )


def _quotas(fleet: Sequence[RecordedNode], work: Sequence[RecordedWork]) -> list[RecordedQuota]:
    asked, size = Counter[str](), Counter[str]()
    for task in work:
        asked[task.firm_id] += task.gpu_milli * task.ran_seconds
    for node in fleet:
        size[node.pool] += node.gpu_milli
    return [
        RecordedQuota(firm_id=firm, pool=pool, nominal_milli=milli)
        for pool in size
        for firm, milli in _shared_out(size[pool], asked).items()
    ]


def _shared_out(milli: int, asked: Mapping[str, int]) -> dict[str, int]:
    """In proportion and without loss: the rest of the division goes to who asked for most."""
    whole = max(1, sum(asked.values()))
    parts = {firm: milli * amount // whole for firm, amount in sorted(asked.items())}
    if parts:
        parts[max(parts, key=lambda firm: asked[firm])] += milli - sum(parts.values())
    return parts


def _pool(centre: str, model: str) -> str:
    return f"{centre}/{model.lower() or 'cpu'}"
