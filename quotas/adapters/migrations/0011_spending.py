"""Exact budgets: whose key a hold is, whose spending a lease serves, and one line of keys through every rotation."""

from alembic import op

# Files are numbered in the order in which they run; a revision keeps the name that databases know it by.
revision = "quotas_0013"
down_revision = "quotas_0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what budgets of keys and limits on tokens count by."""
    op.execute("ALTER TABLE quotas.api_key ADD COLUMN line_id text")
    op.execute("""
        WITH RECURSIVE line AS (
            SELECT k.id, k.id AS line_id FROM quotas.api_key k
            WHERE NOT EXISTS (SELECT FROM quotas.api_key before WHERE before.replaced_by = k.id)
            UNION ALL
            SELECT successor.id, line.line_id FROM line
            JOIN quotas.api_key k ON k.id = line.id JOIN quotas.api_key successor ON successor.id = k.replaced_by
        )
        UPDATE quotas.api_key k SET line_id = line.line_id FROM line WHERE line.id = k.id""")
    op.execute("""
        ALTER TABLE quotas.api_key ALTER COLUMN line_id SET NOT NULL,
            ADD CONSTRAINT api_key_line FOREIGN KEY (line_id) REFERENCES quotas.api_key""")
    op.execute("CREATE INDEX api_key_line ON quotas.api_key (line_id)")
    op.execute("""
        UPDATE quotas.budget b SET key_id = k.line_id FROM quotas.api_key k
        WHERE k.id = b.key_id AND b.ended_at IS NULL AND NOT EXISTS (SELECT FROM quotas.budget other
            WHERE other.key_id = k.line_id AND other.ended_at IS NULL)""")
    op.execute("ALTER TABLE quotas.compute_hold ADD COLUMN key_id text REFERENCES quotas.api_key")
    op.execute("CREATE INDEX compute_hold_open_firm ON quotas.compute_hold (firm_id) WHERE state = 'open'")
    op.execute("""
        ALTER TABLE quotas.allowance_lease
            ADD COLUMN project_id text REFERENCES quotas.project,
            ADD COLUMN key_id text REFERENCES quotas.api_key,
            ADD COLUMN tokens_left bigint NOT NULL DEFAULT 0 CHECK (tokens_left >= 0),
            ADD CONSTRAINT allowance_lease_of_key_is_of_project CHECK (key_id IS NULL OR project_id IS NOT NULL)""")


def downgrade() -> None:
    """Drop the columns."""
    op.execute("ALTER TABLE quotas.allowance_lease DROP COLUMN project_id, DROP COLUMN key_id, DROP COLUMN tokens_left")
    op.execute("ALTER TABLE quotas.compute_hold DROP COLUMN key_id")
    op.execute("DROP INDEX quotas.compute_hold_open_firm")
    op.execute("ALTER TABLE quotas.api_key DROP COLUMN line_id")
