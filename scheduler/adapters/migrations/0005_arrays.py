"""Many tasks of one shape: a row and a cursor; a task becomes a job when its turn comes."""

from alembic import op

revision = "scheduler_0005"
down_revision = "scheduler_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; a job says of which array it is which task."""
    op.execute("""
        CREATE TABLE scheduler.job_array (
            id text PRIMARY KEY CHECK (id LIKE 'arr\\_%'),
            firm_id text NOT NULL,
            project_id text NOT NULL,
            submitted_by text NOT NULL,
            name text NOT NULL CHECK (name <> '' AND char_length(name) <= 200),
            recipe text NOT NULL,
            idempotency_key text NOT NULL CHECK (char_length(idempotency_key) BETWEEN 1 AND 200),
            request_hash bytea NOT NULL CHECK (octet_length(request_hash) = 32),
            template jsonb NOT NULL,
            inputs jsonb NOT NULL,
            size integer NOT NULL CHECK (size BETWEEN 1 AND 100000),
            at_most integer NOT NULL CHECK (at_most BETWEEN 1 AND 1000),
            next_index integer NOT NULL CHECK (next_index BETWEEN 0 AND size),
            run integer NOT NULL CHECK (run >= 0),
            again integer[] NOT NULL,
            held_detail text,
            created_at timestamptz NOT NULL,
            cancelled_at timestamptz,
            ended_at timestamptz
        )""")
    op.execute("CREATE UNIQUE INDEX job_array_idempotency ON scheduler.job_array (firm_id, idempotency_key)")
    op.execute("CREATE INDEX job_array_open ON scheduler.job_array (id) WHERE ended_at IS NULL")
    op.execute("""
        ALTER TABLE scheduler.workload
            ADD COLUMN array_id text REFERENCES scheduler.job_array,
            ADD COLUMN array_index integer CHECK (array_index >= 0),
            ADD COLUMN array_run integer CHECK (array_run >= 0),
            ADD CONSTRAINT workload_task_is_whole CHECK ((array_id IS NULL) = (array_index IS NULL)
                AND (array_id IS NULL) = (array_run IS NULL))""")
    op.execute("CREATE UNIQUE INDEX workload_task ON scheduler.workload (array_id, array_index, array_run)")


def downgrade() -> None:
    """Tasks that became jobs stay as jobs."""
    op.execute("ALTER TABLE scheduler.workload DROP COLUMN array_id, DROP COLUMN array_index, DROP COLUMN array_run")
    op.execute("DROP TABLE scheduler.job_array")
