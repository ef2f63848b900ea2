"""Monthly budgets, the alerts they raise, where alerts go, and what became of each message."""

from alembic import op

revision = "quotas_0008"
down_revision = "quotas_0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create budgets, channels, alerts and deliveries."""
    op.execute("""
        CREATE TABLE quotas.budget (
            id text PRIMARY KEY CHECK (id LIKE 'bud\\_%'),
            firm_id text NOT NULL REFERENCES quotas.firm,
            project_id text REFERENCES quotas.project,
            key_id text REFERENCES quotas.api_key,
            amount bigint NOT NULL CHECK (amount BETWEEN 1 AND 9007199254740992),
            thresholds integer[] NOT NULL CHECK (cardinality(thresholds) > 0),
            hard_stop boolean NOT NULL,
            created_by text NOT NULL,
            created_at timestamptz NOT NULL,
            ended_at timestamptz,
            CONSTRAINT budget_of_one_thing CHECK (project_id IS NULL OR key_id IS NULL)
        )""")
    op.execute("""
        CREATE UNIQUE INDEX budget_once ON quotas.budget (firm_id, coalesce(project_id, ''), coalesce(key_id, ''))
            WHERE ended_at IS NULL""")
    op.execute("""
        CREATE TABLE quotas.alert_channel (
            id text PRIMARY KEY CHECK (id LIKE 'chn\\_%'),
            firm_id text NOT NULL REFERENCES quotas.firm,
            kind text NOT NULL CHECK (kind IN ('webhook', 'email')),
            target text NOT NULL CHECK (target <> ''),
            created_by text NOT NULL,
            created_at timestamptz NOT NULL,
            ended_at timestamptz
        )""")
    op.execute("CREATE INDEX alert_channel_firm ON quotas.alert_channel (firm_id) WHERE ended_at IS NULL")
    op.execute("""
        CREATE TABLE quotas.alert (
            id text PRIMARY KEY CHECK (id LIKE 'alr\\_%'),
            budget_id text NOT NULL REFERENCES quotas.budget,
            firm_id text NOT NULL REFERENCES quotas.firm,
            period text NOT NULL,
            threshold integer NOT NULL,
            amount bigint NOT NULL,
            spent bigint NOT NULL,
            at timestamptz NOT NULL,
            CONSTRAINT alert_once UNIQUE (budget_id, period, threshold)
        )""")
    op.execute("CREATE INDEX alert_firm ON quotas.alert (firm_id, at)")
    op.execute("""
        CREATE TABLE quotas.delivery (
            id text PRIMARY KEY CHECK (id LIKE 'dlv\\_%'),
            alert_id text NOT NULL REFERENCES quotas.alert,
            channel_id text NOT NULL REFERENCES quotas.alert_channel,
            state text NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead')),
            tries integer NOT NULL DEFAULT 0 CHECK (tries >= 0),
            next_at timestamptz NOT NULL,
            last_error text,
            delivered_at timestamptz,
            CONSTRAINT delivery_once UNIQUE (alert_id, channel_id),
            CONSTRAINT delivery_has_day CHECK ((state = 'delivered') = (delivered_at IS NOT NULL))
        )""")
    op.execute("CREATE INDEX delivery_due ON quotas.delivery (next_at) WHERE state = 'waiting'")


def downgrade() -> None:
    """Drop all four."""
    for table in ("delivery", "alert", "alert_channel", "budget"):
        op.execute(f"DROP TABLE quotas.{table}")
