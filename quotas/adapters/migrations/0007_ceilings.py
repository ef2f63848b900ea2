"""Limits beyond nominal: what a firm or a project may use at once and in a month, as a history."""

from alembic import op

revision = "quotas_0007"
down_revision = "quotas_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the history."""
    op.execute("""
        CREATE TABLE quotas.ceiling_version (
            seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            firm_id text NOT NULL REFERENCES quotas.firm,
            project_id text REFERENCES quotas.project,
            gpu_milli_at_once bigint CHECK (gpu_milli_at_once >= 0),
            jobs_at_once integer CHECK (jobs_at_once >= 0),
            gpu_ms_per_period bigint CHECK (gpu_ms_per_period >= 0),
            tokens_per_period bigint CHECK (tokens_per_period >= 0),
            effective_from timestamptz NOT NULL,
            set_at timestamptz NOT NULL,
            set_by text NOT NULL,
            reason text,
            CONSTRAINT ceiling_version_not_backdated CHECK (effective_from >= set_at)
        )""")
    op.execute(
        "CREATE INDEX ceiling_version_order ON quotas.ceiling_version (firm_id, project_id, effective_from, seq)"
    )
    op.execute("""
        CREATE TRIGGER ceiling_version_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON quotas.ceiling_version
            FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")


def downgrade() -> None:
    """Drop the history."""
    op.execute("DROP TABLE quotas.ceiling_version")
