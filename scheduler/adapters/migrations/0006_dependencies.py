"""Jobs that wait for other jobs: a small graph."""

from alembic import op

revision = "scheduler_0006"
down_revision = "scheduler_0005"
branch_labels = None
depends_on = None

_STATES = ["queued", "starting", "running", "succeeded", "failed", "cancelled", "paused"]
_REASONS = [
    "new", "no_quota", "no_room", "no_node", "behind", "no_money", "no_price", "backoff", "not_lent", "reclaim",
]  # fmt: skip


def upgrade() -> None:
    """Create the edges; allow the state and its reason."""
    op.execute("""
        CREATE TABLE scheduler.dependency (
            workload_id text NOT NULL REFERENCES scheduler.workload,
            after_id text NOT NULL CHECK (after_id ~ '^(job|arr)_'),
            rule text NOT NULL CHECK (rule IN ('ok', 'any', 'failed')),
            PRIMARY KEY (workload_id, after_id),
            CONSTRAINT dependency_on_another CHECK (workload_id <> after_id)
        )""")
    op.execute("CREATE INDEX dependency_after ON scheduler.dependency (after_id)")
    _allow([*_STATES, "blocked"], [*_REASONS, "after"], "state IN ('queued', 'blocked')")


def downgrade() -> None:
    """What waited for others waits for nothing more."""
    op.execute("DROP TABLE scheduler.dependency")
    op.execute("""
        UPDATE scheduler.workload SET state = 'queued', wait_reason = 'new', wait_detail = NULL
        WHERE state = 'blocked'""")
    _allow(_STATES, _REASONS, "state = 'queued'")


def _allow(states: list[str], reasons: list[str], waits: str) -> None:
    for column, words in (("state", states), ("wait_reason", reasons)):
        listed = ", ".join(f"'{word}'" for word in words)
        op.execute(f"""
            ALTER TABLE scheduler.workload DROP CONSTRAINT workload_{column}_check,
                ADD CONSTRAINT workload_{column}_check CHECK ({column} IN ({listed}))""")
    op.execute(f"""
        ALTER TABLE scheduler.workload DROP CONSTRAINT workload_waits_with_reason,
            ADD CONSTRAINT workload_waits_with_reason CHECK (({waits}) = (wait_reason IS NOT NULL))""")
