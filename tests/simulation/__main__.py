"""Ride storms from the command line: one seed that failed, or thousands over night, several at a time."""

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tests.simulation.storm import Storm, Wrecked, ride
from tests.support.databases import TestServer, running_server


def main() -> int:
    """Exit status 0: every storm was weathered."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one storm, told event by event")
    parser.add_argument("--seeds", type=int, default=2000, help="storms 0 to this, less one")
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with a server of its own")
    asked = parser.parse_args()
    if asked.seed is not None:
        return _tell(asked.seed, asked.events)
    return _night(asked.seeds, asked.events, asked.jobs)


def _tell(seed: int, events: int) -> int:
    logging.basicConfig(level=logging.WARNING)
    with running_server() as server:
        try:
            storm = _one(seed, events, server)
        except Wrecked as wreck:
            print(wreck)
            return 1
    print("\n".join(storm.told))
    stages = Counter(program.fate.verdict for program in storm.nodes.programs)
    print(f"{len(storm.jobs)} jobs, {len(storm.nodes.programs)} processes {dict(stages)}")
    return 0


def _night(seeds: int, events: int, jobs: int) -> int:
    began, failed = time.monotonic(), 0
    with ProcessPoolExecutor(jobs) as pool:
        lanes = [range(first, seeds, jobs) for first in range(jobs)]
        for wrecks in pool.map(partial(_lane, events=events), lanes):
            failed += len(wrecks)
            print("\n\n".join(wrecks), end="\n\n" if wrecks else "")
    print(f"{seeds} storms of {events} events, {failed} wrecked, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def _lane(seeds: range, events: int) -> list[str]:
    logging.disable(logging.WARNING)
    wrecks: list[str] = []
    with running_server() as server:
        for seed in seeds:
            try:
                _one(seed, events, server)
            except Wrecked as wreck:
                wrecks.append(f"seed {seed}: {wreck}")
    return wrecks


def _one(seed: int, events: int, server: TestServer) -> Storm:
    with server.database() as url, tempfile.TemporaryDirectory() as folder:
        return asyncio.run(ride(seed, events, url, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
