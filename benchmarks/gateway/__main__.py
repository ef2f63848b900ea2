"""The gateway beside routers that meter nothing: `python -m benchmarks.gateway [--quick] [--only PART] [--rounds N]`.

Gateway or router on core 0, an instant mock engine and wrk on core 1, taking turns within one run; medians of the
rounds. Heliu's has everything on: key, limits, holds, the durable log, and a real ledger. Its PostgreSQL and the
process that charges usage are on core 1 too, and take from what the load generator could do.
"""

import argparse
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.gateway.load import Load, first_chunk_ms, wrk
from benchmarks.gateway.memory import gateway_memory
from benchmarks.gateway.real import real_vllm
from benchmarks.gateway.targets import Target, heliu, litellm, mock, nothing, sglang_router, vllm_router
from benchmarks.results import Row, publish

CONCURRENCY = (1, 16, 64)
RUN_IN_SECONDS = 2
"""Load before each measurement, so that in it as much usage is charged as comes."""
STREAMS, CHUNKS = 64, 200
REQUESTS, REQUESTS_QUICK = 1_000_000, 20_000
REAL_ROUNDS, REAL_ROUNDS_QUICK = 12, 2
PARTS = ("speed", "real", "memory")
JUDGED = ("nothing", "heliu", "vllm_router")
"""Measured in every way; the other routers answer plain requests only, for comparison."""


def main() -> None:
    """Measure, print, write benchmarks/results/gateway.json (or gateway_PART.json of a single part)."""
    parser = argparse.ArgumentParser(prog="benchmarks.gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument("--quick", action="store_true", help="one short round, without the routers that are not judged")
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("two cores are needed: one for the gateway, one for the engine and the load")
    quick: bool = options.quick
    rounds, seconds = (1, 2) if quick else (options.rounds, options.seconds)
    rows: list[Row] = []
    if options.only in (None, "speed"):
        with _targets(others=not quick) as targets:
            rows += _rows(*_measure(targets, rounds, seconds))
    if options.only in (None, "real"):
        rows += real_vllm(REAL_ROUNDS_QUICK if quick else REAL_ROUNDS)
    if options.only in (None, "memory"):
        rows += gateway_memory(REQUESTS_QUICK if quick else REQUESTS)
    publish("gateway" if options.only is None else f"gateway_{options.only}", rows)


@contextmanager
def _targets(*, others: bool) -> Iterator[list[Target]]:
    with ExitStack() as stack:
        engine = stack.enter_context(mock())
        targets = [nothing(engine), stack.enter_context(heliu(engine)), stack.enter_context(vllm_router(engine))]
        for router in (sglang_router, litellm) if others else ():
            try:
                target = stack.enter_context(router(engine))
            except OSError as error:
                sys.stderr.write(f"{router.__name__} is left out, it does not answer: {error}\n")
                continue
            targets += [] if target is None else [target]
        yield targets


Plain = dict[tuple[str, int], list[Load]]


def _measure(
    targets: list[Target], rounds: int, seconds: int
) -> tuple[Plain, dict[str, list[Load]], dict[str, list[float]]]:
    plain: Plain = defaultdict(list)
    streamed: dict[str, list[Load]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    judged = [target for target in targets if target.name in JUDGED]
    for _ in range(rounds):
        for concurrency in CONCURRENCY:
            for target in targets:
                wrk(target, concurrency, RUN_IN_SECONDS)
                plain[target.name, concurrency].append(wrk(target, concurrency, seconds))
                target.settle()
        for target in judged:
            wrk(target, STREAMS, RUN_IN_SECONDS, stream_tokens=CHUNKS)
            streamed[target.name].append(wrk(target, STREAMS, seconds, stream_tokens=CHUNKS))
            target.settle()
        for target in judged:
            first[target.name].append(first_chunk_ms(target))
    return plain, streamed, first


def _rows(plain: Plain, streamed: dict[str, list[Load]], first: dict[str, list[float]]) -> list[Row]:
    names = list(streamed) + sorted({name for name, _ in plain} - streamed.keys())
    rows = [
        Row(f"{what}{concurrency}_{name}", _middle(plain[name, concurrency], field), unit)
        for what, field, unit in (("rps", "per_second", "1/s"), ("p50_c", "p50_ms", "ms"))
        for concurrency in CONCURRENCY
        for name in names
    ]
    rows += [
        Row(f"cpu_us_c{concurrency}_{name}", _middle(plain[name, concurrency], "cpu_us"), "µs")
        for concurrency in CONCURRENCY
        for name in ("heliu", "vllm_router")
    ]
    rows += [
        Row(f"load_core_idle_c{concurrency}_{name}", 100 * _middle(plain[name, concurrency], "idle"), "%")
        for concurrency in CONCURRENCY
        for name in names
    ]
    ours, theirs = ({c: plain[name, c] for c in CONCURRENCY} for name in ("heliu", "vllm_router"))
    rows += [
        _ratio(f"rps{c}_vs_vllm_router", _middle(ours[c], "per_second"), _middle(theirs[c], "per_second"), at_least=2)
        for c in (16, 64)
    ]
    rows.append(_ratio("p50_c1_vs_vllm_router", _middle(ours[1], "p50_ms"), _middle(theirs[1], "p50_ms"), at_most=1))
    return rows + _streamed_rows(streamed, first)


def _streamed_rows(streamed: dict[str, list[Load]], first: dict[str, list[float]]) -> list[Row]:
    chunks = {name: _middle(loads, "per_second") * CHUNKS for name, loads in streamed.items()}
    rows = [Row(f"chunks_{name}", value, "1/s") for name, value in chunks.items()]
    rows += [
        Row(f"cpu_us_chunk_{name}", _middle(streamed[name], "cpu_us") / CHUNKS, "µs")
        for name in ("heliu", "vllm_router")
    ]
    rows += [
        Row(f"load_core_idle_chunks_{name}", 100 * _middle(loads, "idle"), "%") for name, loads in streamed.items()
    ]
    rows.append(_ratio("chunks_vs_vllm_router", chunks["heliu"], chunks["vllm_router"], at_least=2))
    added = {name: statistics.median(values) - statistics.median(first["nothing"]) for name, values in first.items()}
    rows.append(Row("first_chunk_added_ms_vllm_router", added["vllm_router"], "ms"))
    rows.append(Row("first_chunk_added_ms", added["heliu"], "ms", target="≤ 0.5", met=added["heliu"] <= 0.5))
    return rows


def _middle(loads: list[Load], field: str) -> float:
    return statistics.median(getattr(load, field) for load in loads)


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
