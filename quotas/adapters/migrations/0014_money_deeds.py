"""What one administrator did alone, so that a large sum is not passed in small pieces."""

from alembic import op

revision = "quotas_0014"
down_revision = "quotas_0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the list."""
    op.execute("""
        CREATE TABLE quotas.lone_deed (
            action text NOT NULL,
            key text NOT NULL CHECK (key <> ''),
            firm_id text NOT NULL REFERENCES quotas.firm,
            amount bigint NOT NULL CHECK (amount >= 0),
            done_by text NOT NULL,
            done_at timestamptz NOT NULL,
            PRIMARY KEY (action, key)
        )""")
    op.execute("CREATE INDEX lone_deed_recent ON quotas.lone_deed (firm_id, done_by, done_at)")
    op.execute("""
        CREATE TRIGGER lone_deed_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON quotas.lone_deed
            FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")


def downgrade() -> None:
    """Drop it."""
    op.execute("DROP TABLE quotas.lone_deed")
