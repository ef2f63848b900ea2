"""The audit log knows of every closed month, those from before it was told too: one that is gone later is missed."""

from alembic import op

revision = "quotas_0022"
down_revision = "quotas_0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Tell the log what `statement_service.close_statement` tells it from now on."""
    op.execute("""
        INSERT INTO quotas.audit_entry (at, actor_kind, actor_id, action, subject, firm_id, after, reason)
        SELECT now(), 'system', 'system', 'statement.close', s.firm_id || ' ' || s.period, s.firm_id,
            jsonb_build_object('hash', s.hash, 'closing_micro_yuan', (s.body ->> 'closing')::bigint),
            'closed at ' || s.closed_at || ', before the log was told'
        FROM quotas.statement s
        WHERE NOT EXISTS (SELECT FROM quotas.audit_entry e
            WHERE e.action = 'statement.close' AND e.subject = s.firm_id || ' ' || s.period)
        ORDER BY s.closed_at, s.firm_id, s.period""")


def downgrade() -> None:
    """What the log was told stays in it."""
