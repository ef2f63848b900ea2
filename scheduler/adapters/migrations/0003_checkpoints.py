"""What a program kept of its work, so that another attempt goes on from there."""

from alembic import op

revision = "scheduler_0003"
down_revision = "scheduler_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; attempts and workloads say how much of their time is kept."""
    op.execute("""
        CREATE TABLE scheduler.checkpoint (
            workload_id text PRIMARY KEY REFERENCES scheduler.workload,
            attempt_id text NOT NULL REFERENCES scheduler.attempt,
            firm_id text NOT NULL,
            project_id text NOT NULL,
            step bigint NOT NULL CHECK (step >= 0),
            gpu_ms bigint NOT NULL CHECK (gpu_ms >= 0),
            sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
            size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
            blob text NOT NULL,
            created_at timestamptz NOT NULL
        )""")
    op.execute("CREATE INDEX checkpoint_firm ON scheduler.checkpoint (firm_id)")
    op.execute("""
        ALTER TABLE scheduler.attempt
            ADD COLUMN kept_ms bigint NOT NULL DEFAULT 0 CHECK (kept_ms >= 0),
            ADD COLUMN kept_at timestamptz""")
    op.execute("""
        ALTER TABLE scheduler.workload
            ADD COLUMN kept_ms bigint NOT NULL DEFAULT 0 CHECK (kept_ms >= 0),
            ADD COLUMN lost_gpu_ms bigint NOT NULL DEFAULT 0 CHECK (lost_gpu_ms >= 0)""")


def downgrade() -> None:
    """Forget it."""
    op.execute("ALTER TABLE scheduler.workload DROP COLUMN kept_ms, DROP COLUMN lost_gpu_ms")
    op.execute("ALTER TABLE scheduler.attempt DROP COLUMN kept_ms, DROP COLUMN kept_at")
    op.execute("DROP TABLE scheduler.checkpoint")
