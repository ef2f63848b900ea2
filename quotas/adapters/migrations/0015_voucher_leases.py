"""Allowance leases hold vouchers beside cash: which pending transfer holds what of which voucher."""

from alembic import op

revision = "quotas_0015"
down_revision = "quotas_0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the vouchers of a lease, and every pending transfer of every lease as a row."""
    op.execute("ALTER TABLE quotas.allowance_lease ADD COLUMN vouchers jsonb NOT NULL DEFAULT '{}'")
    op.execute("""
        CREATE VIEW quotas.allowance_part AS
            SELECT l.id, l.holder, l.firm_id, l.state, l.expires_at, l.project_id, l.key_id, l.tokens_left,
                part.voucher_id, part.pending_id
            FROM quotas.allowance_lease l, LATERAL (
                SELECT NULL::text AS voucher_id, l.pending_id
                UNION ALL SELECT v.key, v.value::bigint FROM jsonb_each_text(l.vouchers) AS v) part""")


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP VIEW quotas.allowance_part")
    op.execute("ALTER TABLE quotas.allowance_lease DROP COLUMN vouchers")
