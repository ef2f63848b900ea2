"""Gangs that start with as many workers as fit, between a least and a most number."""

from alembic import op

revision = "scheduler_0008"
down_revision = "scheduler_0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """`workers` is what an attempt has; the bounds say what it may have."""
    op.execute("""
        ALTER TABLE scheduler.workload
            ADD COLUMN workers_min integer,
            ADD COLUMN workers_max integer,
            ADD CONSTRAINT workload_elastic_bounds CHECK ((workers_min IS NULL) = (workers_max IS NULL)
                AND (workers_min IS NULL OR (workers_min >= 1 AND workers_min < workers_max
                    AND workers BETWEEN workers_min AND workers_max)))""")


def downgrade() -> None:
    """What was elastic is not any more."""
    op.execute("""
        ALTER TABLE scheduler.workload DROP CONSTRAINT workload_elastic_bounds, DROP COLUMN workers_min,
            DROP COLUMN workers_max""")
