"""How many tasks of an array are under way is asked every second: not by reading all that are over."""

from alembic import op

revision = "scheduler_0010"
down_revision = "scheduler_0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Index them."""
    op.execute("""
        CREATE INDEX workload_open_task ON scheduler.workload (array_id)
            WHERE ended_at IS NULL AND array_id IS NOT NULL""")


def downgrade() -> None:
    """Drop the index."""
    op.execute("DROP INDEX scheduler.workload_open_task")
