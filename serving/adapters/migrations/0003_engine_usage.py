"""What was billed of each engine start as one sum for each gateway, not a row for each request.

The usage record of each request is in the ledger; two rows and four index entries of every request were the half of
what charging it cost.
"""

from alembic import op

revision = "serving_0003"
down_revision = "serving_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add up what there is."""
    op.execute("ALTER TABLE serving.engine_usage RENAME TO engine_usage_each")
    op.execute("ALTER INDEX serving.engine_usage_pkey RENAME TO engine_usage_each_pkey")
    op.execute("""
        CREATE TABLE serving.engine_usage (
            engine_start text NOT NULL,
            source text NOT NULL,
            prompt_tokens bigint NOT NULL CHECK (prompt_tokens >= 0),
            generation_tokens bigint NOT NULL CHECK (generation_tokens >= 0),
            last_at timestamptz NOT NULL,
            PRIMARY KEY (engine_start, source)
        ) WITH (fillfactor = 50)""")
    op.execute("""
        INSERT INTO serving.engine_usage (engine_start, source, prompt_tokens, generation_tokens, last_at)
        SELECT engine_start, source, sum(prompt_tokens), sum(generation_tokens), max(at)
        FROM serving.engine_usage_each GROUP BY engine_start, source""")
    op.execute("DROP TABLE serving.engine_usage_each")


def downgrade() -> None:
    """The rows of single requests do not come back: each sum becomes one of them."""
    op.execute("ALTER TABLE serving.engine_usage ADD COLUMN usage_id text")
    op.execute("UPDATE serving.engine_usage SET usage_id = engine_start")
    op.execute("ALTER TABLE serving.engine_usage RENAME COLUMN last_at TO at")
    op.execute("ALTER TABLE serving.engine_usage DROP CONSTRAINT engine_usage_pkey, ADD PRIMARY KEY (source, usage_id)")
    op.execute("""
        CREATE INDEX engine_usage_of_start ON serving.engine_usage (engine_start)
        INCLUDE (prompt_tokens, generation_tokens, at)""")
