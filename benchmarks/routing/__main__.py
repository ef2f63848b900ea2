"""`python -m benchmarks.routing`: the gateway's router beside others over modelled replicas, in virtual time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.results import Row, publish
from benchmarks.routing import trace
from benchmarks.routing.routers import ROUTERS
from benchmarks.routing.simulate import Outcome, pooled_hit_rate, simulate

DATA = Path(__file__).parents[3] / "shared" / "data"
CELLS = ((1.5, 1_000), (1.5, 3_000), (1.75, 3_000))
"""(speed, cache blocks of 512 tokens on each replica)."""
UNSHARED_SPEED, UNSHARED_BLOCKS = 4.0, 3_000
OURS = "heliu"


def main(
    trace_path: Annotated[Path, typer.Option("--trace", help="Mooncake .jsonl or Azure .csv.")] = (
        DATA / "mooncake" / "conversation_first_6000.jsonl"
    ),
    unshared: Annotated[Path, typer.Option(help="A trace without shared prefixes.")] = DATA / "azure" / "conv_2023.csv",
) -> None:
    """Replay a trace in three cells and write benchmarks/results/routing.json."""
    for path in (trace_path, unshared):
        if not path.exists():
            raise typer.BadParameter(f"{path} is not there; benchmarks/README.md says where the traces come from")
    cells = [compare(trace_path, speed, blocks) for speed, blocks in CELLS]
    plain = compare_unshared(unshared)
    hits = min(cell.hits for cell in cells)
    aware = max(cell.p90_aware for cell in cells)
    p90 = max(cell.p90_predicted for cell in cells)
    p99 = max(cell.p99_predicted for cell in cells)
    publish(
        "routing",
        [
            ratio("prefix_hit_vs_pooled", hits, "one LRU of all blocks", ">= 0.9", hits >= 0.9),
            ratio("ttft_p90_vs_cache_aware", aware, "best of threshold, unit-free", "<= 0.7", aware <= 0.7),
            ratio("ttft_p90_vs_least_predicted", p90, "least predicted TTFT", "<= 1", p90 <= 1),
            ratio("ttft_p99_vs_least_predicted", p99, "least predicted TTFT", "<= 1.05", p99 <= 1.05),
            ratio("ttft_p90_vs_round_robin_unshared", plain, "round robin", "<= 1", plain <= 1),
        ],
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """Heliu's router in one cell, as ratios to a pooled cache's hits and to the others' times to first token."""

    hits: float
    p90_aware: float
    p90_predicted: float
    p99_predicted: float


def compare(path: Path, speed: float, blocks: int) -> Cell:
    """Every router on one trace at one speed, printed; and Heliu's ratios."""
    requests = trace.read(path, speed=speed)
    pooled = pooled_hit_rate(requests, blocks=blocks)
    outcomes = run_all(requests, blocks)
    show(f"{path.stem}, speed {speed:g}, {blocks} blocks", outcomes, pooled)
    ours, predicted = outcomes[OURS], outcomes["least predicted TTFT"]
    return Cell(
        ours.hit_rate / pooled if pooled else 1.0,
        ours.ttft_p90 / min(outcomes["threshold"].ttft_p90, outcomes["unit-free"].ttft_p90),
        ours.ttft_p90 / predicted.ttft_p90,
        ours.ttft_p99 / predicted.ttft_p99,
    )


def compare_unshared(path: Path) -> float:
    """Every router on a trace without shared prefixes, printed; and Heliu's p90 relative to round robin's."""
    outcomes = run_all(trace.read(path, speed=UNSHARED_SPEED, limit=6_000), UNSHARED_BLOCKS)
    show(f"{path.stem}, speed {UNSHARED_SPEED:g}, no shared prefixes", outcomes, 0.0)
    return outcomes[OURS].ttft_p90 / outcomes["round robin"].ttft_p90


def run_all(requests: list[trace.Request], blocks: int) -> dict[str, Outcome]:
    """What each router makes of the same requests."""
    return {name: simulate(requests, make(blocks), blocks=blocks) for name, make in ROUTERS.items()}


def ratio(metric: str, value: float, reference: str, target: str, met: bool) -> Row:
    """A row whose value is itself the ratio, in the worst cell."""
    return Row(metric, value, "worst cell", reference, value, target, met)


def show(title: str, outcomes: dict[str, Outcome], pooled: float) -> None:
    """One cell as a table."""
    table = Table("router", "hit rate / pooled", "TTFT p50 s", "p90 s", "p99 s", title=title)
    for name, outcome in outcomes.items():
        hit = f"{outcome.hit_rate / pooled:.3f}" if pooled else "–"
        table.add_row(
            name,
            hit,
            f"{outcome.ttft_p50:.2f}",
            f"{outcome.ttft_p90:.2f}",
            f"{outcome.ttft_p99:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
