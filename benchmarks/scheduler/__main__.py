"""`python -m benchmarks.scheduler`: placement side by side on a trace, the queue's order, and what a cycle costs."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.results import publish
from benchmarks.scheduler.comparison import TRACES, Trace, mix_rows, policy_rows
from benchmarks.scheduler.kueue import kueue_rows
from benchmarks.scheduler.order import cycle_rows, order_rows
from benchmarks.scheduler.restart import restart_rows
from kit.errors import InvalidInput


def main(
    trace: Annotated[Path, typer.Option(help="Folder with nodes.csv and pods_default.csv, openb's columns.")] = TRACES,
    nodes: Annotated[Path | None, typer.Option(help="Other nodes than the folder's.")] = None,
    pods: Annotated[Path | None, typer.Option(help="Other tasks than the folder's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0 on.")] = 10,
    policy: Annotated[list[str] | None, typer.Option(help="Only these policies; all without it.")] = None,
    quick: Annotated[bool, typer.Option(help="One seed, a tenth of Kueue's load, cycles of 1,000 jobs.")] = False,
    jobs: Annotated[list[int] | None, typer.Option(help="Waiting jobs of a cycle; a tenth as many nodes.")] = None,
) -> None:
    """Compare placement policies at 130 % load, order and cost of cycles; write benchmarks/results/scheduler.json.

    With another trace or chosen policies only placement is compared; that is written to scheduler_placement.json.
    """
    seeds = 1 if quick else seeds
    try:
        of = Trace.at(trace, nodes, pods)
        rows = policy_rows(of, policy, seeds=seeds)
    except (FileNotFoundError, KeyError, InvalidInput) as error:
        raise typer.BadParameter(str(error.args[0])) from error
    if policy or not of.is_openb:
        publish("scheduler_placement", rows)
        return
    rows += mix_rows(of, seeds=min(seeds, 2))
    rows += order_rows()
    rows += kueue_rows(quick=quick)
    for size in jobs or ((1_000,) if quick else (1_000, 10_000, 100_000)):
        rows += cycle_rows(size, size // 10)
    rows += restart_rows()
    publish("scheduler", rows)


if __name__ == "__main__":
    typer.run(main)
