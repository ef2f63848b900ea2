"""Tables of the fleet: pools, nodes, their accelerators, and times for which nodes are kept."""

from datetime import datetime

from sqlalchemy import Index, text

from scheduler.adapters.columns import SCHEMA as SCHEMA
from scheduler.adapters.columns import Table as _Table
from scheduler.adapters.columns import flag as _flag
from scheduler.adapters.columns import instant as _instant
from scheduler.adapters.columns import integer as _integer
from scheduler.adapters.columns import json_column as _json
from scheduler.adapters.columns import small_count as _small_count
from scheduler.adapters.columns import text_column as _text
from scheduler.adapters.columns import texts as _texts


class PoolRow(_Table, table=True):
    """All nodes of one accelerator in one centre. Made when its first node is seen, and kept."""

    __tablename__ = "pool"
    __table_args__ = ({"schema": SCHEMA},)

    name: str = _text(primary_key=True)
    centre: str = _text()
    accelerator: str = _text()
    created_at: datetime = _instant()


class NodeRow(_Table, table=True):
    """A machine of a pool, with what live attempts hold of it (`placed_…`): a CHECK keeps S1."""

    __tablename__ = "node"
    __table_args__ = (Index("node_pool", "pool"), {"schema": SCHEMA})

    id: str = _text(primary_key=True)
    pool: str = _text(to="pool.name")
    address: str = _text()
    resource: str = _text()  # what Ray calls its accelerators: GPU, NPU, slot …
    devices_variable: str | None = _text(nullable=True)  # names a program its accelerators; None: no need to
    gpu_milli: int = _integer()
    placed_milli: int = _integer()
    cpu_milli: int = _integer()
    placed_cpu_milli: int = _integer()
    memory_mib: int = _integer()
    placed_memory_mib: int = _integer()
    topology: dict[str, str] = _json()
    state: str = _text()
    cordon_reason: str | None = _text(nullable=True)
    draining: bool = _flag()
    failed_setups: int = _small_count()  # attempts in a row that could not be prepared here
    first_seen_at: datetime = _instant()
    last_seen_at: datetime = _instant()

    @property
    def is_used(self) -> bool:
        """Whether work is placed on it."""
        return self.placed_milli + self.placed_cpu_milli > 0


class DeviceRow(_Table, table=True):
    """An accelerator of a node: what live attempts hold of it, and whose they are. One firm at a time, 1000 at most."""

    __tablename__ = "device"
    __table_args__ = ({"schema": SCHEMA},)

    node_id: str = _text(primary_key=True, to="node.id")
    index: int = _integer(primary_key=True)
    placed_milli: int = _integer()
    firm_id: str | None = _text(nullable=True)


class InventoryRow(_Table, table=True):
    """What a node has that lets work begin sooner, as one of its runners last said."""

    __tablename__ = "node_inventory"
    __table_args__ = ({"schema": SCHEMA},)

    node_id: str = _text(primary_key=True, to="node.id")
    files: list[str] = _texts()
    models: list[str] = _texts()  # on its disk
    warm: list[str] = _texts()  # … and in its memory
    told_at: datetime = _instant()


class WindowRow(_Table, table=True):
    """A time for which nodes are kept: for maintenance, or for one firm (`firm_id`)."""

    __tablename__ = "kept_time"
    __table_args__ = (
        Index("kept_time_open", "ends_at", postgresql_where=text("cancelled_at IS NULL")),
        {"schema": SCHEMA},
    )

    id: str = _text(primary_key=True)
    scope: str = _text()
    target: str = _text()
    firm_id: str | None = _text(nullable=True)
    reason: str = _text()
    starts_at: datetime = _instant()
    ends_at: datetime = _instant()
    for_drain: bool = _flag()
    created_by: str = _text()
    created_at: datetime = _instant()
    cancelled_at: datetime | None = _instant(nullable=True)
