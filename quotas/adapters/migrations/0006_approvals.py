"""Four eyes on money: what waits for a second administrator, and from which amount on."""

from alembic import op

revision = "quotas_0006"
down_revision = "quotas_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the policy and the proposals."""
    op.execute("""
        CREATE TABLE quotas.approval_policy (
            seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            amount_above bigint NOT NULL CHECK (amount_above BETWEEN 0 AND 9007199254740992),
            rate_above bigint NOT NULL CHECK (rate_above BETWEEN 0 AND 9007199254740992),
            set_at timestamptz NOT NULL,
            set_by text NOT NULL,
            reason text NOT NULL
        )""")
    op.execute("""
        CREATE TRIGGER approval_policy_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON quotas.approval_policy
            FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")
    # ¥100,000 in micro-yuan.
    op.execute("""
        INSERT INTO quotas.approval_policy (amount_above, rate_above, set_at, set_by, reason)
        VALUES (100000000000, 100000000000, now(), 'system', 'as installed')""")
    op.execute("""
        CREATE TABLE quotas.proposal (
            id text PRIMARY KEY CHECK (id LIKE 'apr\\_%'),
            action text NOT NULL CHECK (action IN ('voucher_grant', 'top_up', 'withdrawal', 'credit_line', 'refund',
                'tariff', 'policy')),
            key text NOT NULL CHECK (key <> ''),
            firm_id text REFERENCES quotas.firm,
            amount bigint NOT NULL CHECK (amount >= 0),
            body jsonb NOT NULL,
            state text NOT NULL CHECK (state IN ('open', 'approved', 'refused')),
            proposed_by text NOT NULL,
            proposed_at timestamptz NOT NULL,
            decided_by text,
            decided_at timestamptz,
            decision_reason text,
            result_id text,
            CONSTRAINT proposal_once UNIQUE (action, key),
            CONSTRAINT proposal_decided CHECK ((state = 'open') = (decided_by IS NULL)
                AND (state = 'open') = (decided_at IS NULL)),
            CONSTRAINT proposal_has_result CHECK ((state = 'approved') = (result_id IS NOT NULL)),
            CONSTRAINT proposal_four_eyes CHECK (state <> 'approved' OR decided_by <> proposed_by),
            CONSTRAINT proposal_refused_why CHECK (state <> 'refused' OR decision_reason IS NOT NULL)
        )""")
    op.execute("CREATE INDEX proposal_queue ON quotas.proposal (state, proposed_at)")


def downgrade() -> None:
    """Drop both."""
    op.execute("DROP TABLE quotas.proposal")
    op.execute("DROP TABLE quotas.approval_policy")
