"""A step in the life of work changes its row in place: no index names the state it is in, and pages have room."""

from alembic import op

revision = "scheduler_0012"
down_revision = "scheduler_0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Index what is under way by whether it has ended: only the end of work moves it in an index."""
    op.execute("DROP INDEX scheduler.workload_live")
    op.execute("CREATE INDEX workload_live ON scheduler.workload (id) WHERE ended_at IS NULL")
    op.execute("DROP INDEX scheduler.attempt_live")
    op.execute("CREATE UNIQUE INDEX attempt_live ON scheduler.attempt (workload_id) WHERE ended_at IS NULL")
    op.execute("DROP INDEX scheduler.workload_task")
    op.execute("""
        CREATE UNIQUE INDEX workload_task ON scheduler.workload (array_id, array_index, array_run)
            WHERE array_id IS NOT NULL""")
    op.execute("ALTER TABLE scheduler.workload SET (fillfactor = 60)")
    op.execute("ALTER TABLE scheduler.attempt SET (fillfactor = 50)")


def downgrade() -> None:
    """As it was."""
    op.execute("ALTER TABLE scheduler.attempt RESET (fillfactor)")
    op.execute("ALTER TABLE scheduler.workload RESET (fillfactor)")
    op.execute("DROP INDEX scheduler.workload_task")
    op.execute("CREATE UNIQUE INDEX workload_task ON scheduler.workload (array_id, array_index, array_run)")
    op.execute("DROP INDEX scheduler.attempt_live")
    op.execute("CREATE UNIQUE INDEX attempt_live ON scheduler.attempt (workload_id) WHERE state <> 'ended'")
    op.execute("DROP INDEX scheduler.workload_live")
    op.execute("CREATE INDEX workload_live ON scheduler.workload (state) WHERE ended_at IS NULL")
