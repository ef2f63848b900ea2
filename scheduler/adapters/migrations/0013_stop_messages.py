"""An attempt that is told to stop keeps why, in its owner's words."""

from alembic import op

revision = "scheduler_0013"
down_revision = "scheduler_0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The runner knows only that it was told to."""
    op.execute("ALTER TABLE scheduler.attempt ADD COLUMN stop_message text")


def downgrade() -> None:
    """As it was."""
    op.execute("ALTER TABLE scheduler.attempt DROP COLUMN stop_message")
