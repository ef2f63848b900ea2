"""The migrated schema against the tables and the vocabulary."""

from itertools import product

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from kit.clock import FixedClock
from kit.db import Database, violated_constraint
from serving.adapters import tables
from serving.vocabulary import ReplicaState, may_become
from tests.support.serving import add_model, add_replica, deploy

TABLES = [
    value
    for value in vars(tables).values()
    if isinstance(value, type) and issubclass(value, tables.Table) and hasattr(value, "__table__")
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__tablename__)
async def test_every_column_is_as_the_migration_makes_it(db: Database, table: type[tables.SQLModel]) -> None:
    def columns(connection: Connection) -> dict[str, tuple[str, bool]]:
        found = inspect(connection).get_columns(str(table.__tablename__), schema="serving")
        return {one["name"]: (one["type"].compile(connection.dialect), one["nullable"]) for one in found}

    async with db.engine.connect() as connection:
        migrated = await connection.run_sync(columns)
        declared = {
            one.name: (one.type.compile(connection.dialect), bool(one.nullable))
            for one in table.__table__.columns  # type: ignore[attr-defined]
        }
    assert declared == migrated


async def test_the_database_moves_replicas_exactly_along_the_vocabularys_arrows(
    db: Database, clock: FixedClock
) -> None:
    async with db.transaction() as tx:
        await add_model(tx, now=clock.now())
        deployment = await deploy(tx, now=clock.now())
        host = await add_replica(tx, deployment, now=clock.now())
    set_freely = text("""UPDATE serving.replica SET state = :state, url = 'http://127.0.0.1:80', engine_start = 'eng_1',
                         attempt_id = 'att_1' WHERE id = :id""")
    for here, there in product(ReplicaState, ReplicaState):
        async with db.transaction() as tx:
            await tx.execute(text("SET LOCAL session_replication_role = replica"))
            await tx.execute(set_freely, {"state": here.value, "id": host.replica_id})
        try:
            async with db.transaction() as tx:
                await tx.execute(set_freely, {"state": there.value, "id": host.replica_id})
            refused_by = None
        except IntegrityError as error:
            refused_by = violated_constraint(error)
        expected = None if may_become(here, there) else "replica_moves_legally"
        assert refused_by == expected, f"{here} to {there}"
