"""Durable events and the positions of their readers."""

from alembic import op

revision = "kit_0001"
down_revision = None
branch_labels = ("kit",)
depends_on = None


def upgrade() -> None:
    """Create the schema `kit` with its event log."""
    op.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
    op.execute("CREATE SCHEMA kit")
    op.execute("""
        CREATE TABLE kit.event (
            seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
            at timestamptz NOT NULL,
            topic text NOT NULL CHECK (topic <> ''),
            subject text NOT NULL CHECK (subject <> ''),
            firm_id text,
            body jsonb NOT NULL
        )""")
    op.execute("CREATE INDEX event_order ON kit.event (xid, seq)")
    op.execute("CREATE INDEX event_subject ON kit.event (subject, xid, seq)")
    op.execute("CREATE INDEX event_topic ON kit.event (topic, xid, seq)")
    op.execute("""
        CREATE TABLE kit.cursor (
            reader text PRIMARY KEY,
            position text NOT NULL
        )""")


def downgrade() -> None:
    """Drop the schema."""
    op.execute("DROP SCHEMA kit CASCADE")
