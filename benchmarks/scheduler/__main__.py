"""`python -m benchmarks.scheduler`: placement side by side on a trace, the queue's order, and what a cycle costs."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.results import Row, publish
from benchmarks.scheduler.kueue import kueue_rows
from benchmarks.scheduler.mixes import MIXES, remixed
from benchmarks.scheduler.order import cycle_rows, order_rows
from benchmarks.scheduler.placement import run
from benchmarks.scheduler.policies import POLICIES
from benchmarks.scheduler.restart import restart_rows
from benchmarks.scheduler.trace import Fleet, Task, read_fleet, read_tasks

TRACES = Path(__file__).parents[3] / "shared" / "data" / "openb"
PUBLISHED = {"random": 87.47, "best-fit": 93.08, "fgd": 95.39}
"""FGD (Weng et al., ATC'23), figure 9a, default trace, % of GPUs allocated, mean of 10 seeds."""
ALLOCATED_TARGET, SECONDS_TARGET = 96.2, 5.0


def main(
    nodes: Annotated[Path, typer.Option(help="CSV of nodes, openb's columns.")] = TRACES / "nodes.csv",
    pods: Annotated[Path, typer.Option(help="CSV of tasks, openb's columns.")] = TRACES / "pods_default.csv",
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0 on.")] = 10,
    policy: Annotated[list[str] | None, typer.Option(help="Only these policies; all without it.")] = None,
    quick: Annotated[bool, typer.Option(help="One seed, a tenth of Kueue's load, cycles of 1,000 jobs.")] = False,
    jobs: Annotated[list[int] | None, typer.Option(help="Waiting jobs of a cycle; a tenth as many nodes.")] = None,
) -> None:
    """Compare placement policies at 130 % load, order and cost of cycles; write benchmarks/results/scheduler.json."""
    for path in (nodes, pods):
        if not path.exists():
            raise typer.BadParameter(f"{path} is not there; benchmarks/README.md says where the traces come from")
    fleet, tasks = read_fleet(nodes), read_tasks(pods)
    rows: list[Row] = []
    for name in policy or POLICIES:
        outcomes = [run(fleet, tasks, name, seed) for seed in range(1 if quick else seeds)]
        allocated = float(np.mean([outcome.allocated for outcome in outcomes]))
        rows.append(allocated_row(name, allocated, pods))
        if name == "bid-price":
            seconds = float(np.median([outcome.seconds for outcome in outcomes]))
            target, met = f"<= {SECONDS_TARGET:g}", seconds <= SECONDS_TARGET
            rows.append(Row("fgd_seconds_per_seed", seconds, f"s ({pods.stem})", "", None, target, met))
    for mix, weights in MIXES.items() if policy is None else ():
        rows.append(mix_row(fleet, remixed(tasks, weights), mix, seeds=1 if quick else 2))
    rows += order_rows()
    rows += kueue_rows(quick=quick)
    for size in jobs or ((1_000,) if quick else (1_000, 10_000, 100_000)):
        rows += cycle_rows(size, size // 10)
    rows += restart_rows()
    publish("scheduler", rows)


def mix_row(fleet: Fleet, tasks: list[Task], mix: str, *, seeds: int) -> Row:
    """Heliu's policy beside FGD in the same run, on another mix of the cluster."""
    ours, fgd = (
        float(np.mean([run(fleet, tasks, name, seed).allocated for seed in range(seeds)]))
        for name in ("bid-price", "fgd")
    )
    return Row(f"allocated_{mix}", ours, "%", f"FGD {fgd:.2f}", ours / fgd, ">= FGD", ours >= fgd)


def allocated_row(policy: str, allocated: float, pods: Path) -> Row:
    """Heliu's policy beside the published FGD; any other beside its own published figure, on the trace that has one."""
    unit = f"% ({pods.stem})"
    if policy == "bid-price":
        target, met = f">= {ALLOCATED_TARGET}", allocated >= ALLOCATED_TARGET
        fgd = PUBLISHED["fgd"]
        return Row("fgd_default_130", allocated, unit, f"FGD published {fgd}", allocated / fgd, target, met)
    if pods.name != "pods_default.csv":
        return Row(f"allocated_{policy}", allocated, unit)
    published = PUBLISHED[policy]
    met = abs(allocated - published) <= 0.15
    ratio = allocated / published
    return Row(f"allocated_{policy}", allocated, unit, f"published {published}", ratio, "within 0.15 points", met)


if __name__ == "__main__":
    typer.run(main)
