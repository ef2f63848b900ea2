"""`python -m benchmarks.routing`: the gateway's router beside others over modelled replicas, in virtual time."""

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
OURS = "heliu (cache events)"


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
    hits: list[float] = []
    aware: list[float] = []
    p90: list[float] = []
    p99: list[float] = []
    for speed, blocks in CELLS:
        requests = trace.read(trace_path, speed=speed)
        pooled = pooled_hit_rate(requests, blocks=blocks)
        outcomes = {name: simulate(requests, make(blocks), blocks=blocks) for name, make in ROUTERS.items()}
        show(f"{trace_path.stem}, speed {speed:g}, {blocks} blocks", outcomes, pooled)
        ours, predicted = outcomes[OURS], outcomes["least predicted TTFT"]
        hits.append(ours.hit_rate / pooled)
        aware.append(ours.ttft_p90 / min(outcomes["threshold"].ttft_p90, outcomes["unit-free"].ttft_p90))
        p90.append(ours.ttft_p90 / predicted.ttft_p90)
        p99.append(ours.ttft_p99 / predicted.ttft_p99)
    requests = trace.read(unshared, speed=UNSHARED_SPEED, limit=6_000)
    outcomes = {
        name: simulate(requests, make(UNSHARED_BLOCKS), blocks=UNSHARED_BLOCKS) for name, make in ROUTERS.items()
    }
    show(f"{unshared.stem}, speed {UNSHARED_SPEED:g}, no shared prefixes", outcomes, 0.0)
    plain = outcomes[OURS].ttft_p90 / outcomes["round robin"].ttft_p90
    publish(
        "routing",
        [
            ratio(
                "prefix_hit_vs_pooled",
                min(hits),
                "one LRU of all blocks",
                ">= 0.9",
                min(hits) >= 0.9,
            ),
            ratio(
                "ttft_p90_vs_cache_aware",
                max(aware),
                "best of threshold, unit-free",
                "<= 0.7",
                max(aware) <= 0.7,
            ),
            ratio(
                "ttft_p90_vs_least_predicted",
                max(p90),
                "least predicted TTFT",
                "<= 1",
                max(p90) <= 1,
            ),
            ratio(
                "ttft_p99_vs_least_predicted",
                max(p99),
                "least predicted TTFT",
                "<= 1.05",
                max(p99) <= 1.05,
            ),
            ratio(
                "ttft_p90_vs_round_robin_unshared",
                plain,
                "round robin",
                "<= 1",
                plain <= 1,
            ),
        ],
    )


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
