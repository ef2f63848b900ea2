"""Billed = counted over requests of every kind, cut off anywhere, with the gateway killed in between.

`python -m benchmarks.counting` does the same with 10,000 requests.
"""

from pathlib import Path

from kit.db import Database
from serving.gateway.bench_target import furnish
from tests.support.counting_run import MODEL, CountingRun
from tests.support.mock_engines import mock_engine


async def test_tokens_billed_are_the_tokens_counted_and_after_a_kill_never_more(
    db: Database, database_url: str, tmp_path: Path
) -> None:
    with mock_engine("--key", "k" * 40, "--model", MODEL, "--interval-ms", "2") as engine:
        made = await furnish(db, [engine.url], model=MODEL, engine_key="k" * 40)
        run = CountingRun(db, database_url, made, engine, tmp_path / "gw", seed=6)
        calm = await run.part(300, kill=False)
        assert calm.whole > 100
        assert (calm.billed_prompt, calm.billed_generation) == (calm.prompt, calm.generation)
        killed = await run.part(300, kill=True)
        assert 0 < killed.billed_generation <= killed.generation
        assert 0 < killed.billed_prompt <= killed.prompt
        again = await run.part(100, kill=False)
        assert again.loss == 0, "what the kill lost is not billed later"
    await run.verify()
