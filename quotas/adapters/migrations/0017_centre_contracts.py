"""A centre's contract is money too: above the policy's price a second administrator approves it."""

from alembic import op

revision = "quotas_0017"
down_revision = "quotas_0016"
branch_labels = None
depends_on = None

BEFORE = "'voucher_grant', 'top_up', 'withdrawal', 'credit_line', 'refund', 'tariff', 'policy', 'discount'"


def upgrade() -> None:
    """Let a proposal be of a centre's contract."""
    _actions(f"{BEFORE}, 'centre_contract'")


def downgrade() -> None:
    """Narrow it again; fails where one was proposed."""
    _actions(BEFORE)


def _actions(known: str) -> None:
    op.execute(f"""
        ALTER TABLE quotas.proposal DROP CONSTRAINT proposal_action_check,
            ADD CONSTRAINT proposal_action_check CHECK (action IN ({known}))""")
