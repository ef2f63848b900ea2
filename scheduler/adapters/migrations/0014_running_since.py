"""A workload knows since when it runs this time, so that a list of jobs can say when they will end."""

from alembic import op

revision = "scheduler_0014"
down_revision = "scheduler_0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """`started_at` stays the first start of all; what runs now has begun with its live attempt."""
    op.execute("ALTER TABLE scheduler.workload ADD COLUMN running_since timestamptz")
    op.execute("""
        UPDATE scheduler.workload AS w SET running_since = a.started_at FROM scheduler.attempt AS a
        WHERE a.workload_id = w.id AND a.ended_at IS NULL AND w.state = 'running'""")


def downgrade() -> None:
    """As it was."""
    op.execute("ALTER TABLE scheduler.workload DROP COLUMN running_since")
