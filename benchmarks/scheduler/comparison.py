"""Placement policies side by side on a trace, each beside its published figure where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

import numpy as np

from benchmarks.results import Row
from benchmarks.scheduler.mixes import MIXES, remixed
from benchmarks.scheduler.placement import Outcome, run
from benchmarks.scheduler.policies import POLICIES
from benchmarks.scheduler.trace import Fleet, Task, read_fleet, read_tasks

PUBLISHED = {"random": 87.47, "best-fit": 93.08, "fgd": 95.39}
"""FGD (Weng et al., ATC'23), figure 9a, default trace, % of GPUs allocated, mean of 10 seeds."""
ALLOCATED_TARGET, SECONDS_TARGET = 96.2, 5.0
OURS, BESIDE = "bid-price", "fgd"
TRACES = Path(__file__).parents[3] / "shared" / "data" / "openb"
_OPENB = "d015cccf2c6704b6fb3ee86b31c40b8ea553a8e641ee40e2361750af83720b91"


@dataclass(frozen=True, slots=True)
class Trace:
    """Nodes and tasks in files of openb's format (Alibaba GPU-v2023)."""

    nodes: Path
    pods: Path

    @classmethod
    def at(cls, folder: Path, nodes: Path | None = None, pods: Path | None = None) -> Self:
        """A folder's, or other files instead. Raises FileNotFoundError that says which."""
        found = cls(nodes or folder / "nodes.csv", pods or folder / "pods_default.csv")
        for path in (found.nodes, found.pods):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is not there; benchmarks/README.md says where the traces come from")
        return found

    @property
    def name(self) -> str:
        """As rows name it."""
        return f"{self.pods.parent.name}/{self.pods.stem}"

    @property
    def is_openb(self) -> bool:
        """Whether it is the one of which figures were published and for which targets are set."""
        return sha256(self.nodes.read_bytes() + self.pods.read_bytes()).hexdigest() == _OPENB

    def read(self) -> tuple[Fleet, list[Task]]:
        """Its nodes and tasks. Raises InvalidInput that names the line."""
        return read_fleet(self.nodes), read_tasks(self.pods)


def policy_rows(trace: Trace, policies: Sequence[str] | None = None, *, seeds: int) -> list[Row]:
    """What share of the GPUs each policy allocates. Raises KeyError that lists the policies there are."""
    unknown = set(policies or ()) - POLICIES.keys()
    if unknown:
        raise KeyError(f"there is no policy {', '.join(sorted(unknown))}; there are {', '.join(POLICIES)}")
    fleet, tasks = trace.read()
    rows: list[Row] = []
    for name in policies or POLICIES:
        outcomes = [run(fleet, tasks, name, seed) for seed in range(seeds)]
        rows.append(_allocated_row(name, _mean(outcomes), trace))
        if name == OURS:
            seconds = float(np.median([outcome.seconds for outcome in outcomes]))
            target, met = f"<= {SECONDS_TARGET:g}", seconds <= SECONDS_TARGET
            rows.append(Row("fgd_seconds_per_seed", seconds, f"s of one core ({trace.name})", "", None, target, met))
    return rows


def mix_rows(trace: Trace, *, seeds: int) -> list[Row]:
    """Heliu's policy beside FGD in the same run, on other mixes of the cluster."""
    fleet, tasks = trace.read()
    rows: list[Row] = []
    for mix, weights in MIXES.items():
        drawn = remixed(tasks, weights)
        ours, fgd = (_mean([run(fleet, drawn, name, seed) for seed in range(seeds)]) for name in (OURS, BESIDE))
        beside, unit = f"FGD {fgd:.2f}", f"% ({trace.name})"
        rows.append(Row(f"allocated_{mix}", ours, unit, beside, ours / fgd, ">= FGD", ours >= fgd))
    return rows


def _mean(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.allocated for outcome in outcomes]))


def _allocated_row(policy: str, allocated: float, trace: Trace) -> Row:
    """Heliu's policy beside the published FGD; any other beside its own published figure, on the trace that has one."""
    unit = f"% ({trace.name})"
    if not trace.is_openb:
        return Row(f"allocated_{policy}", allocated, unit)
    if policy == OURS:
        target, met = f">= {ALLOCATED_TARGET}", allocated >= ALLOCATED_TARGET
        fgd = PUBLISHED[BESIDE]
        return Row("fgd_default_130", allocated, unit, f"FGD published {fgd}", allocated / fgd, target, met)
    published = PUBLISHED[policy]
    met, ratio = abs(allocated - published) <= 0.15, allocated / published
    return Row(f"allocated_{policy}", allocated, unit, f"published {published}", ratio, "within 0.15 points", met)
