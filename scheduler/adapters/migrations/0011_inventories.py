"""What nodes have that lets work begin sooner, what of it a job can use, and how places scored."""

from alembic import op

revision = "scheduler_0011"
down_revision = "scheduler_0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table of its own: a node's row changes with every start, what the node has does not."""
    op.execute("""
        CREATE TABLE scheduler.node_inventory (
            node_id text PRIMARY KEY REFERENCES scheduler.node (id) ON DELETE CASCADE,
            files text[] NOT NULL,
            models text[] NOT NULL,
            warm text[] NOT NULL,
            told_at timestamptz NOT NULL)""")
    op.execute("""
        ALTER TABLE scheduler.workload ADD COLUMN model text, ADD COLUMN files jsonb NOT NULL DEFAULT '{}',
            ADD COLUMN pool_ranks integer[],
            ADD CONSTRAINT workload_pool_ranks CHECK (cardinality(pool_ranks) = cardinality(pools))""")
    op.execute("ALTER TABLE scheduler.attempt ADD COLUMN told jsonb")


def downgrade() -> None:
    """Nobody knows any more."""
    op.execute("ALTER TABLE scheduler.attempt DROP COLUMN told")
    op.execute("ALTER TABLE scheduler.workload DROP COLUMN model, DROP COLUMN files, DROP COLUMN pool_ranks")
    op.execute("DROP TABLE scheduler.node_inventory")
