"""What sharing needs: reasons of its own, a deadline, and what each firm used lately."""

from alembic import op

revision = "scheduler_0002"
down_revision = "scheduler_0001"
branch_labels = None
depends_on = None

_REASONS = ["new", "no_quota", "no_room", "no_node", "behind", "no_money", "no_price", "backoff"]


def upgrade() -> None:
    """Allow the new reasons, keep deadlines and usage."""
    _allow([*_REASONS, "not_lent", "reclaim"])
    op.execute("ALTER TABLE scheduler.workload ADD COLUMN deadline timestamptz")
    op.execute("""
        CREATE TABLE scheduler.firm_usage (
            firm_id text NOT NULL,
            pool text NOT NULL REFERENCES scheduler.pool,
            milli_seconds double precision NOT NULL CHECK (milli_seconds >= 0),
            as_of timestamptz NOT NULL,
            PRIMARY KEY (firm_id, pool)
        )""")


def downgrade() -> None:
    """Take both away again; what waits for a reason that is gone is looked at anew."""
    op.execute("UPDATE scheduler.workload SET wait_reason = 'new' WHERE wait_reason IN ('not_lent', 'reclaim')")
    op.execute("DROP TABLE scheduler.firm_usage")
    op.execute("ALTER TABLE scheduler.workload DROP COLUMN deadline")
    _allow(_REASONS)


def _allow(reasons: list[str]) -> None:
    listed = ", ".join(f"'{reason}'" for reason in reasons)
    op.execute(f"""
        ALTER TABLE scheduler.workload DROP CONSTRAINT workload_wait_reason_check,
            ADD CONSTRAINT workload_wait_reason_check CHECK (wait_reason IN ({listed}))""")
