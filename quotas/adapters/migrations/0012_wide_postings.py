"""Wide postings: lock and judge many balances in one pass, and leave their rows room to change in place."""

from alembic import op

revision = "quotas_0012"
down_revision = "quotas_0013"
branch_labels = None
depends_on = None

# As in 0004, but that the row locks and the check of funds are one pass over the balances instead of two: while they
# are locked everybody else waits.
MANY = """
    IF cardinality(ids) > 8 THEN
        WITH locked AS MATERIALIZED (
            SELECT b.account_id, b.credits_posted - b.debits_posted - b.debits_pending - b.floor AS free
            FROM quotas.balance b WHERE b.account_id = ANY (ids) ORDER BY b.account_id FOR UPDATE
        ), spent AS (
            SELECT u.id, sum(u.dp + u.dq - u.cp)::bigint AS less
            FROM unnest(ids, dp, cp, dq) AS u (id, dp, cp, dq) GROUP BY u.id
        )
        SELECT min(locked.account_id) INTO short FROM locked JOIN spent ON spent.id = locked.account_id
        WHERE spent.less > 0 AND locked.free < spent.less;
        IF short IS NOT NULL THEN RETURN short; END IF;
        UPDATE quotas.balance b SET
            debits_posted = b.debits_posted + m.dp, credits_posted = b.credits_posted + m.cp,
            debits_pending = b.debits_pending + m.dq, credits_pending = b.credits_pending + m.cq
        FROM (SELECT u.id, sum(u.dp)::bigint dp, sum(u.cp)::bigint cp, sum(u.dq)::bigint dq, sum(u.cq)::bigint cq
            FROM unnest(ids, dp, cp, dq, cq) AS u (id, dp, cp, dq, cq) GROUP BY u.id) AS m
        WHERE b.account_id = m.id;
        RETURN NULL;
    END IF;"""
MANY_BEFORE = """
    IF cardinality(ids) > 8 THEN
        PERFORM FROM quotas.balance b WHERE b.account_id = ANY (ids) ORDER BY b.account_id FOR UPDATE;
        SELECT min(b.account_id) INTO short FROM quotas.balance b JOIN (
            SELECT u.id, sum(u.dp + u.dq - u.cp)::bigint AS less
            FROM unnest(ids, dp, cp, dq) AS u (id, dp, cp, dq) GROUP BY u.id
        ) AS spent ON spent.id = b.account_id
        WHERE spent.less > 0 AND b.credits_posted - b.debits_posted - b.debits_pending - spent.less < b.floor;
        IF short IS NOT NULL THEN RETURN short; END IF;
        UPDATE quotas.balance b SET
            debits_posted = b.debits_posted + m.dp, credits_posted = b.credits_posted + m.cp,
            debits_pending = b.debits_pending + m.dq, credits_pending = b.credits_pending + m.cq
        FROM (SELECT u.id, sum(u.dp)::bigint dp, sum(u.cp)::bigint cp, sum(u.dq)::bigint dq, sum(u.cq)::bigint cq
            FROM unnest(ids, dp, cp, dq, cq) AS u (id, dp, cp, dq, cq) GROUP BY u.id) AS m
        WHERE b.account_id = m.id;
        RETURN NULL;
    END IF;"""
MOVE_BALANCES = """
CREATE OR REPLACE FUNCTION quotas.move_balances(ids bigint[], dp bigint[], cp bigint[], dq bigint[], cq bigint[])
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    change record;
    short bigint;
BEGIN{many}
    FOR change IN
        SELECT u.id, sum(u.dp)::bigint dp, sum(u.cp)::bigint cp, sum(u.dq)::bigint dq, sum(u.cq)::bigint cq
        FROM unnest(ids, dp, cp, dq, cq) AS u (id, dp, cp, dq, cq) GROUP BY u.id ORDER BY u.id
    LOOP
        UPDATE quotas.balance b SET
            debits_posted = b.debits_posted + change.dp, credits_posted = b.credits_posted + change.cp,
            debits_pending = b.debits_pending + change.dq, credits_pending = b.credits_pending + change.cq
        WHERE b.account_id = change.id AND (change.dp + change.dq <= change.cp OR b.credits_posted + change.cp
            - b.debits_posted - change.dp - b.debits_pending - change.dq >= b.floor);
        IF NOT FOUND THEN
            short := change.id;
            EXIT;
        END IF;
    END LOOP;
    IF short IS NOT NULL THEN
        UPDATE quotas.balance b SET
            debits_posted = b.debits_posted - back.dp, credits_posted = b.credits_posted - back.cp,
            debits_pending = b.debits_pending - back.dq, credits_pending = b.credits_pending - back.cq
        FROM (SELECT u.id, sum(u.dp)::bigint dp, sum(u.cp)::bigint cp, sum(u.dq)::bigint dq, sum(u.cq)::bigint cq
            FROM unnest(ids, dp, cp, dq, cq) AS u (id, dp, cp, dq, cq) GROUP BY u.id) AS back
        WHERE b.account_id = back.id AND back.id < short;
    END IF;
    RETURN short;
END $$"""


def upgrade() -> None:
    """Put the function in place of the one of 0004; a balance's page is filled to a tenth, the rest is for changes."""
    op.execute(MOVE_BALANCES.format(many=MANY))
    op.execute("ALTER TABLE quotas.balance SET (fillfactor = 10)")


def downgrade() -> None:
    """As it was."""
    op.execute(MOVE_BALANCES.format(many=MANY_BEFORE))
    op.execute("ALTER TABLE quotas.balance SET (fillfactor = 50)")
