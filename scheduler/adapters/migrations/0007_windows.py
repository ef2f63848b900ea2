"""Times for which nodes are kept: maintenance, and advance reservations of a firm; and nodes that fail at set-up."""

from alembic import op

revision = "scheduler_0007"
down_revision = "scheduler_0006"
branch_labels = None
depends_on = None

_REASONS = [
    "new", "no_quota", "no_room", "no_node", "behind", "no_money", "no_price", "backoff", "not_lent", "reclaim",
    "after",
]  # fmt: skip


def upgrade() -> None:
    """Create the table; allow the reason; count failed set-ups; say which work can be laid aside."""
    op.execute("""
        CREATE TABLE scheduler.kept_time (
            id text PRIMARY KEY CHECK (id LIKE 'win\\_%'),
            scope text NOT NULL CHECK (scope IN ('node', 'pool', 'centre')),
            target text NOT NULL CHECK (target <> ''),
            firm_id text,
            reason text NOT NULL CHECK (reason <> ''),
            starts_at timestamptz NOT NULL,
            ends_at timestamptz NOT NULL CHECK (ends_at > starts_at),
            for_drain boolean NOT NULL,
            created_by text NOT NULL,
            created_at timestamptz NOT NULL,
            cancelled_at timestamptz
        )""")
    op.execute("CREATE INDEX kept_time_open ON scheduler.kept_time (ends_at) WHERE cancelled_at IS NULL")
    op.execute("ALTER TABLE scheduler.node ADD COLUMN failed_setups integer NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE scheduler.workload ADD COLUMN checkpoints boolean NOT NULL DEFAULT false")
    _allow([*_REASONS, "window"])


def downgrade() -> None:
    """Forget them; what waited for a window is looked at anew."""
    op.execute("UPDATE scheduler.workload SET wait_reason = 'new' WHERE wait_reason = 'window'")
    _allow(_REASONS)
    op.execute("ALTER TABLE scheduler.workload DROP COLUMN checkpoints")
    op.execute("ALTER TABLE scheduler.node DROP COLUMN failed_setups")
    op.execute("DROP TABLE scheduler.kept_time")


def _allow(reasons: list[str]) -> None:
    listed = ", ".join(f"'{reason}'" for reason in reasons)
    op.execute(f"""
        ALTER TABLE scheduler.workload DROP CONSTRAINT workload_wait_reason_check,
            ADD CONSTRAINT workload_wait_reason_check CHECK (wait_reason IN ({listed}))""")
