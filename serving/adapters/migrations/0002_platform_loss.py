"""What engines computed for callers and nobody paid: the platform's loss, one row per engine start."""

from alembic import op

revision = "serving_0002"
down_revision = "serving_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.execute("""
        CREATE TABLE serving.platform_loss (
            engine_start text PRIMARY KEY REFERENCES serving.engine_count,
            model text NOT NULL,
            prompt_tokens bigint NOT NULL CHECK (prompt_tokens >= 0),
            generation_tokens bigint NOT NULL CHECK (generation_tokens >= 0),
            micro_yuan bigint CHECK (micro_yuan >= 0),
            booked_at timestamptz NOT NULL,
            changed_at timestamptz NOT NULL
        )""")


def downgrade() -> None:
    """Drop it."""
    op.execute("DROP TABLE serving.platform_loss")
