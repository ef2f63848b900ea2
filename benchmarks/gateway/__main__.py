"""The gateway beside routers that meter nothing: `python -m benchmarks.gateway [--rounds N] [--seconds S]`.

Gateway or router on core 0, an instant mock engine and wrk on core 1, taking turns within one run; medians of the
rounds. Heliu's has everything on: key, limits, holds, the durable log, and a real ledger. Its PostgreSQL and the
process that charges usage are on core 1 too, and take from what the load generator could do.
"""

import argparse
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.gateway.load import Load, first_chunk_ms, wrk
from benchmarks.gateway.targets import Target, heliu, mock, nothing, vllm_router
from benchmarks.results import Row, publish

CONCURRENCY = (1, 16, 64)
STREAMS, CHUNKS = 64, 200


def main() -> None:
    """Measure, print, write benchmarks/results/gateway.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("two cores are needed: one for the gateway, one for the engine and the load")
    with _targets() as targets:
        plain, streamed, first = _measure(targets, options.rounds, options.seconds)
    publish("gateway", _rows(plain, streamed, first))


@contextmanager
def _targets() -> Iterator[list[Target]]:
    with ExitStack() as stack:
        engine = stack.enter_context(mock())
        yield [
            nothing(engine),
            stack.enter_context(heliu(engine)),
            stack.enter_context(vllm_router(engine)),
        ]


Measured = dict[tuple[str, int], list[Load]]


def _measure(
    targets: list[Target], rounds: int, seconds: int
) -> tuple[Measured, dict[str, list[Load]], dict[str, list[float]]]:
    plain: Measured = defaultdict(list)
    streamed: dict[str, list[Load]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for concurrency in CONCURRENCY:
            for target in targets:
                plain[target.name, concurrency].append(wrk(target, concurrency, seconds))
        for target in targets:
            streamed[target.name].append(wrk(target, STREAMS, seconds, stream_tokens=CHUNKS))
        for target in targets:
            first[target.name].append(first_chunk_ms(target))
    return plain, streamed, first


def _rows(plain: Measured, streamed: dict[str, list[Load]], first: dict[str, list[float]]) -> list[Row]:
    def rps(name: str, concurrency: int) -> float:
        return statistics.median(load.per_second for load in plain[name, concurrency])

    def p50(name: str, concurrency: int) -> float:
        return statistics.median(load.p50_ms for load in plain[name, concurrency])

    rows = [
        Row(f"{what}{concurrency}_{name}", value(name, concurrency), unit)
        for what, value, unit in (("rps", rps, "1/s"), ("p50_c", p50, "ms"))
        for concurrency in CONCURRENCY
        for name in ("nothing", "heliu", "vllm_router")
    ]
    for concurrency in (16, 64):
        ours, theirs = rps("heliu", concurrency), rps("vllm_router", concurrency)
        rows.append(_ratio(f"rps{concurrency}_vs_vllm_router", ours, theirs, at_least=2))
    rows.append(_ratio("p50_c1_vs_vllm_router", p50("heliu", 1), p50("vllm_router", 1), at_most=1))
    chunks = {name: statistics.median(load.per_second for load in loads) * CHUNKS for name, loads in streamed.items()}
    rows += [Row(f"chunks_{name}", value, "1/s") for name, value in chunks.items()]
    rows.append(_ratio("chunks_vs_vllm_router", chunks["heliu"], chunks["vllm_router"], at_least=2))
    added = {name: statistics.median(values) - statistics.median(first["nothing"]) for name, values in first.items()}
    rows.append(Row("first_chunk_added_ms_vllm_router", added["vllm_router"], "ms"))
    rows.append(Row("first_chunk_added_ms", added["heliu"], "ms", target="≤ 0.5", met=added["heliu"] <= 0.5))
    return rows


def _ratio(
    metric: str, ours: float, theirs: float, *, at_least: float | None = None, at_most: float | None = None
) -> Row:
    ratio = ours / theirs
    if at_least is not None:
        return Row(metric, ours, "", f"{theirs:,.4g}", ratio, f"≥ {at_least:g}", ratio >= at_least)
    assert at_most is not None
    return Row(metric, ours, "", f"{theirs:,.4g}", ratio, f"≤ {at_most:g}", ratio <= at_most)


if __name__ == "__main__":
    main()
