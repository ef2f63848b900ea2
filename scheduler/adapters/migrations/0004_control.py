"""What an owner may do with a job under way: pause it, cap what it spends, have it tried again; how long it takes."""

from alembic import op

revision = "scheduler_0004"
down_revision = "scheduler_0003"
branch_labels = None
depends_on = None

_STATES = ["queued", "starting", "running", "succeeded", "failed", "cancelled"]
_CAUSES = [
    "done", "program_error", "time_limit", "setup", "node_lost", "lease_lost", "evicted", "unpaid", "cancelled",
    "platform",
]  # fmt: skip


def upgrade() -> None:
    """Allow the new state and causes; keep the wishes."""
    _allow([*_STATES, "paused"], [*_CAUSES, "paused", "spending_cap"])
    op.execute("""
        ALTER TABLE scheduler.workload
            ADD COLUMN pause_requested_at timestamptz,
            ADD COLUMN pause_reason text,
            ADD COLUMN hard_cap_micro_yuan bigint CHECK (hard_cap_micro_yuan >= 0),
            ADD COLUMN retries integer NOT NULL DEFAULT 0 CHECK (retries BETWEEN 0 AND 10),
            ADD COLUMN program_errors integer NOT NULL DEFAULT 0 CHECK (program_errors >= 0),
            ADD COLUMN estimated_seconds integer CHECK (estimated_seconds > 0),
            ADD COLUMN duration_basis text,
            ADD CONSTRAINT workload_paused_by_wish CHECK (state <> 'paused' OR pause_requested_at IS NOT NULL),
            ADD CONSTRAINT workload_hard_cap_holds
                CHECK (hard_cap_micro_yuan IS NULL OR charged_micro_yuan <= hard_cap_micro_yuan)""")


def downgrade() -> None:
    """Forget them: what is paused is queued again."""
    op.execute("""
        UPDATE scheduler.workload SET state = 'queued', wait_reason = 'new', wait_detail = NULL
        WHERE state = 'paused'""")
    op.execute("UPDATE scheduler.attempt SET cause = 'cancelled' WHERE cause IN ('paused', 'spending_cap')")
    op.execute("""
        ALTER TABLE scheduler.workload
            DROP CONSTRAINT workload_paused_by_wish, DROP CONSTRAINT workload_hard_cap_holds,
            DROP COLUMN pause_requested_at, DROP COLUMN pause_reason, DROP COLUMN hard_cap_micro_yuan,
            DROP COLUMN retries, DROP COLUMN program_errors, DROP COLUMN estimated_seconds,
            DROP COLUMN duration_basis""")
    _allow(_STATES, _CAUSES)


def _allow(states: list[str], causes: list[str]) -> None:
    for table, column, words in (("workload", "state", states), ("attempt", "cause", causes)):
        listed = ", ".join(f"'{word}'" for word in words)
        op.execute(f"""
            ALTER TABLE scheduler.{table} DROP CONSTRAINT {table}_{column}_check,
                ADD CONSTRAINT {table}_{column}_check CHECK ({column} IN ({listed}))""")
