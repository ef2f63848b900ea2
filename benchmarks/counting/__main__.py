"""Billed against counted over many requests: `python -m benchmarks.counting [--requests N] [--parts P] [--seed S]`.

Plain, streamed and cut off at a random byte, on four endpoints, through a gateway that is killed in every other part.
Prints a line a part, and fails unless: without a kill billed = counted, with one never more; every hold is closed.
"""

import argparse
import asyncio
import shutil
import tempfile
from pathlib import Path

from kit.db import Database
from kit.migrate import run_migrations
from kit.postgres import start_embedded, stop_embedded
from quotas import api as quotas
from scheduler import api as scheduler
from serving import api as serving
from serving.gateway.bench_target import furnish
from tests.support.counting_run import MODEL, Counted, CountingRun
from tests.support.mock_engines import mock_engine

ENGINE_KEY = "engine-key-0123456789-0123456789-0123456789"


def main() -> None:
    """Run, print, exit 1 when billed is not what it should be."""
    parser = argparse.ArgumentParser(prog="benchmarks.counting", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="heliu-counting-"))
    folder.chmod(0o755)  # as root, the server is another user and must be able to walk there
    try:
        url = start_embedded(folder / "postgres")
        run_migrations(url, [quotas.MIGRATIONS, scheduler.MIGRATIONS, serving.MIGRATIONS])
        parts = asyncio.run(_run(url, folder / "gateway", options))
    finally:
        stop_embedded(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)
    wrong = [part for part in parts if part.loss < 0 or (part.loss and not part.killed)]
    print(f"{sum(part.requests for part in parts)} requests: {len(wrong)} of {len(parts)} parts wrong")
    raise SystemExit(1 if wrong else 0)


async def _run(url: str, folder: Path, options: argparse.Namespace) -> list[Counted]:
    db = Database(url)
    parts: list[Counted] = []
    try:
        with mock_engine("--key", ENGINE_KEY, "--model", MODEL, "--interval-ms", "2") as engine:
            made = await furnish(db, [engine.url], model=MODEL, engine_key=ENGINE_KEY)
            run = CountingRun(db, url, made, engine, folder, seed=options.seed)
            for number in range(options.parts):
                part = await run.part(options.requests // options.parts, kill=number % 2 == 1)
                counted, billed = part.prompt + part.generation, part.billed_prompt + part.billed_generation
                print(f"part {number}: {part.whole} whole, counted {counted}, billed {billed}, loss {part.loss}"
                      f"{' (killed)' if part.killed else ''}", flush=True)  # fmt: skip
                parts.append(part)
            await run.verify()
    finally:
        await db.close()
    return parts


if __name__ == "__main__":
    main()
