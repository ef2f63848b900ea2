"""The migrated database is what the code thinks it is, and refuses what the rules forbid."""

import pytest
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from kit.db import Database, violated_constraint
from scheduler.adapters import tables
from scheduler.vocabulary import ATTEMPT_TRANSITIONS, JOB_TRANSITIONS, AttemptState, EndCause, JobState, WaitReason
from tests.support.scheduling import City


async def test_every_table_has_the_columns_the_code_names(db: Database) -> None:
    def columns(connection: Connection) -> dict[str, dict[str, tuple[str, bool]]]:
        seen = inspect(connection)
        return {
            table: {
                c["name"]: (c["type"].compile(connection.dialect), c["nullable"])
                for c in seen.get_columns(table, tables.SCHEMA)
            }
            for table in seen.get_table_names(tables.SCHEMA)
        }

    async with db.engine.connect() as connection:
        made, dialect = await connection.run_sync(columns), connection.dialect
    named = {
        table.name: {c.name: (c.type.compile(dialect), bool(c.nullable)) for c in table.columns}
        for table in SQLModel.metadata.tables.values()
        if table.schema == tables.SCHEMA
    }
    assert made == named


async def test_the_checks_know_every_word_of_the_vocabulary(db: Database) -> None:
    async with db.transaction() as tx:
        rows = await tx.execute(
            text("""
                SELECT pg_get_constraintdef(oid) FROM pg_constraint
                WHERE connamespace = CAST('scheduler' AS regnamespace)""")
        )
        rules = "\n".join(rows.scalars())
    for word in [*JobState, *AttemptState, *WaitReason, *EndCause]:
        assert f"'{word}'" in rules, word


def test_what_is_over_stays_over() -> None:
    assert all(not JOB_TRANSITIONS[s] for s in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED))
    assert ATTEMPT_TRANSITIONS[AttemptState.ENDED] == frozenset()
    assert set(JOB_TRANSITIONS) == set(JobState) and set(ATTEMPT_TRANSITIONS) == set(AttemptState)


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE scheduler.node SET placed_milli = gpu_milli + 1", "node_not_oversold"),
        ("UPDATE scheduler.node SET placed_milli = -1", "node_not_oversold"),
        ("UPDATE scheduler.workload SET wait_reason = NULL", "workload_waits_with_reason"),
        ("UPDATE scheduler.workload SET state = 'succeeded', wait_reason = NULL", "workload_over_has_end"),
        ("UPDATE scheduler.workload SET cap_micro_yuan = 1, charged_micro_yuan = 2", "workload_charge_capped"),
        ("UPDATE scheduler.workload SET max_runtime_seconds = NULL", "workload_job_has_limit"),
    ],
)
async def test_the_database_itself_refuses_a_broken_rule(city: City, statement: str, constraint: str) -> None:
    await city.submit(await city.firm())
    with pytest.raises(IntegrityError) as refusal:
        async with city.db.transaction() as tx:
            await tx.execute(text(statement))
    assert violated_constraint(refusal.value) == constraint


async def test_a_workload_has_one_live_attempt(city: City) -> None:
    job_id = await city.submit(await city.firm())
    await city.step()
    with pytest.raises(IntegrityError) as refusal:
        async with city.db.transaction() as tx:
            await tx.execute(
                text("""
                    INSERT INTO scheduler.attempt (id, workload_id, firm_id, fence, state, pool, token_hash, hold_id,
                        held_seconds, placed_at, metered_ms)
                    SELECT 'att_second', workload_id, firm_id, 2, state, pool, token_hash, hold_id, held_seconds,
                        placed_at, 0 FROM scheduler.attempt WHERE workload_id = :job"""),
                {"job": job_id},
            )
    assert violated_constraint(refusal.value) == "attempt_live"
