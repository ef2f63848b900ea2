"""Shares of accelerators, CPU and memory: what nodes have, what jobs ask for, and which accelerator whose work has."""

from alembic import op

revision = "scheduler_0009"
down_revision = "scheduler_0008"
branch_labels = None
depends_on = None

_NEW = {
    "node": ["cpu_milli", "placed_cpu_milli", "memory_mib", "placed_memory_mib", "topology"],
    "workload": ["spread"],
    "placement": ["cpu_milli", "memory_mib"],
}


def upgrade() -> None:
    """Nodes get devices; what runs gets the accelerators it has been using, counted from the first."""
    _nodes()
    op.execute("""
        ALTER TABLE scheduler.workload
            DROP CONSTRAINT workload_gpu_milli_check,
            ADD COLUMN cpu_milli integer NOT NULL DEFAULT 0 CHECK (cpu_milli >= 0),
            ADD COLUMN memory_mib integer NOT NULL DEFAULT 0 CHECK (memory_mib >= 0),
            ADD COLUMN spread text NOT NULL DEFAULT 'same_centre'
                CHECK (spread IN ('same_centre', 'same_node', 'apart')),
            ADD COLUMN topology text,
            ADD CONSTRAINT workload_shape CHECK (gpu_milli >= 0 AND (gpu_milli < 1000 OR gpu_milli % 1000 = 0)
                AND gpu_milli + cpu_milli > 0)""")
    _placements()
    _devices()
    for table, columns in _NEW.items():
        op.execute(f"ALTER TABLE scheduler.{table} {', '.join(f'ALTER {one} DROP DEFAULT' for one in columns)}")


def downgrade() -> None:
    """Take it away again; fails while a job asks for a share or for no accelerator, which could not be kept."""
    op.execute("DROP TABLE scheduler.device")
    op.execute("""
        ALTER TABLE scheduler.placement
            DROP COLUMN cpu_milli, DROP COLUMN memory_mib, DROP COLUMN devices,
            ADD CONSTRAINT placement_gpu_milli_check CHECK (gpu_milli > 0)""")
    op.execute("""
        ALTER TABLE scheduler.workload
            DROP CONSTRAINT workload_shape,
            DROP COLUMN cpu_milli, DROP COLUMN memory_mib, DROP COLUMN spread, DROP COLUMN topology,
            ADD CONSTRAINT workload_gpu_milli_check CHECK (gpu_milli >= 1000 AND gpu_milli % 1000 = 0)""")
    op.execute("""
        ALTER TABLE scheduler.node
            DROP CONSTRAINT node_resource,
            DROP COLUMN devices_variable, DROP COLUMN cpu_milli, DROP COLUMN placed_cpu_milli,
            DROP COLUMN memory_mib, DROP COLUMN placed_memory_mib, DROP COLUMN topology,
            ADD CONSTRAINT node_resource_check CHECK (resource IN ('GPU', 'slot'))""")


def _nodes() -> None:
    op.execute("""
        ALTER TABLE scheduler.node
            DROP CONSTRAINT node_resource_check,
            ADD CONSTRAINT node_resource CHECK (resource <> ''),
            ADD COLUMN devices_variable text CHECK (devices_variable ~ '^[A-Z][A-Z0-9_]*$'),
            ADD COLUMN cpu_milli integer NOT NULL DEFAULT 0 CHECK (cpu_milli >= 0),
            ADD COLUMN placed_cpu_milli integer NOT NULL DEFAULT 0,
            ADD COLUMN memory_mib integer NOT NULL DEFAULT 0 CHECK (memory_mib >= 0),
            ADD COLUMN placed_memory_mib integer NOT NULL DEFAULT 0,
            ADD COLUMN topology jsonb NOT NULL DEFAULT '{}',
            ADD CONSTRAINT node_cpu_not_oversold CHECK (placed_cpu_milli BETWEEN 0 AND cpu_milli),
            ADD CONSTRAINT node_memory_not_oversold CHECK (placed_memory_mib BETWEEN 0 AND memory_mib)""")
    op.execute("UPDATE scheduler.node SET devices_variable = 'CUDA_VISIBLE_DEVICES' WHERE resource = 'GPU'")


def _placements() -> None:
    op.execute("""
        ALTER TABLE scheduler.placement
            DROP CONSTRAINT placement_gpu_milli_check,
            ADD COLUMN cpu_milli integer NOT NULL DEFAULT 0 CHECK (cpu_milli >= 0),
            ADD COLUMN memory_mib integer NOT NULL DEFAULT 0 CHECK (memory_mib >= 0),
            ADD COLUMN devices integer[]""")
    op.execute("""
        UPDATE scheduler.placement AS p
        SET devices = ARRAY(SELECT generate_series(seen.first, seen.first + p.gpu_milli / 1000 - 1))
        FROM (SELECT one.attempt_id, one.worker, CASE WHEN a.state = 'ended' THEN 0 ELSE
                  sum(one.gpu_milli / 1000) OVER (PARTITION BY one.node_id, a.state = 'ended'
                      ORDER BY one.attempt_id, one.worker) - one.gpu_milli / 1000 END AS first
              FROM scheduler.placement AS one JOIN scheduler.attempt AS a ON a.id = one.attempt_id) AS seen
        WHERE seen.attempt_id = p.attempt_id AND seen.worker = p.worker""")
    op.execute("""
        ALTER TABLE scheduler.placement
            ALTER devices SET NOT NULL,
            ADD CONSTRAINT placement_names_devices CHECK (gpu_milli >= 0
                AND (gpu_milli < 1000 OR gpu_milli % 1000 = 0)
                AND cardinality(devices) = (gpu_milli + 999) / 1000)""")


def _devices() -> None:
    op.execute("""
        CREATE TABLE scheduler.device (
            node_id text NOT NULL REFERENCES scheduler.node,
            index integer NOT NULL CHECK (index >= 0),
            placed_milli integer NOT NULL,
            firm_id text,
            PRIMARY KEY (node_id, index),
            CONSTRAINT device_not_oversold CHECK (placed_milli BETWEEN 0 AND 1000),
            CONSTRAINT device_has_one_firm CHECK ((placed_milli = 0) = (firm_id IS NULL))
        )""")
    op.execute("""
        INSERT INTO scheduler.device (node_id, index, placed_milli, firm_id)
        SELECT n.id, i, CASE WHEN used.firm_id IS NULL THEN 0 ELSE 1000 END, used.firm_id
        FROM scheduler.node AS n CROSS JOIN LATERAL generate_series(0, n.gpu_milli / 1000 - 1) AS i
        LEFT JOIN (SELECT p.node_id, unnest(p.devices) AS index, a.firm_id
                   FROM scheduler.placement AS p JOIN scheduler.attempt AS a ON a.id = p.attempt_id
                   WHERE a.state <> 'ended') AS used ON used.node_id = n.id AND used.index = i""")
