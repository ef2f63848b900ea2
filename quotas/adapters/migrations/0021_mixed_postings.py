"""Many legs of one operation are judged and written set-wise whatever they are: holds opened, resolved, money moved."""

import runpy
from pathlib import Path

from alembic import op

revision = "quotas_0021"
down_revision = "quotas_0020"
branch_labels = None
depends_on = None

# Many legs at once, each judged by the ladder of `refusal_of_leg`: the first that is refused and why, or the legs with
# what their holds say of them, and what they change of bounded balances. A hold is resolved by one leg, and wholly.
WEIGH_LEGS = """
CREATE FUNCTION quotas.weigh_legs(
    now timestamptz, kinds quotas.transfer_kind[], pendings bigint[], IN OUT debits bigint[], IN OUT credits bigint[],
    IN OUT amounts bigint[], OUT finals boolean[], OUT refused_leg int, OUT refusal text,
    OUT ids bigint[], OUT dp bigint[], OUT cp bigint[], OUT dq bigint[], OUT cq bigint[]
) LANGUAGE sql AS $$
    WITH leg AS (
        SELECT u.i, u.kind, u.pending, p.id AS held, p.amount_left, p.expires_at, u.kind IN ('post', 'void', 'expire')
            AS resolves, coalesce(p.debit_id, u.debit) AS debit, coalesce(p.credit_id, u.credit) AS credit,
            CASE WHEN u.kind IN ('void', 'expire') THEN p.amount_left ELSE u.amount END AS amount
        FROM unnest(kinds, debits, credits, amounts, pendings) WITH ORDINALITY
            AS u (kind, debit, credit, amount, pending, i)
        LEFT JOIN quotas.pending p ON p.id = u.pending
    ), judged AS MATERIALIZED (
        SELECT leg.*, d.bounded AS debit_bounded, c.bounded AS credit_bounded,
            CASE WHEN kind IN ('posted', 'post') THEN amount ELSE 0 END AS moved,
            CASE WHEN resolves THEN -amount_left WHEN kind = 'pending' THEN amount ELSE 0 END AS kept,
            CASE
                WHEN kind IN ('posted', 'pending', 'post') AND coalesce(amount, 0) < 1 THEN 'amount_not_positive'
                WHEN kind IN ('posted', 'pending', 'post') AND amount > 9007199254740992 THEN 'amount_too_large'
                WHEN resolves AND held IS NULL THEN CASE
                    WHEN EXISTS (SELECT FROM quotas.transfer t WHERE t.id = pending AND t.kind = 'pending')
                    THEN 'pending_resolved' ELSE 'pending_unknown' END
                WHEN kind = 'post' AND expires_at <= weigh_legs.now THEN 'pending_expired'
                WHEN kind = 'expire' AND expires_at > weigh_legs.now THEN 'pending_not_expired'
                WHEN kind = 'post' AND amount > amount_left THEN 'exceeds_pending'
                WHEN debit = credit THEN 'same_account'
                WHEN d.id IS NULL OR c.id IS NULL THEN 'account_unknown'
                WHEN d.asset <> c.asset THEN 'asset_mismatch'
                WHEN NOT resolves AND (d.closed OR c.closed) THEN 'account_closed' END AS why
        FROM leg LEFT JOIN quotas.account d ON d.id = debit LEFT JOIN quotas.account c ON c.id = credit
    ), change AS (
        SELECT s.id, sum(s.dp)::bigint AS dp, sum(s.cp)::bigint AS cp, sum(s.dq)::bigint AS dq, sum(s.cq)::bigint AS cq
        FROM (
            SELECT debit AS id, moved AS dp, 0 AS cp, kept AS dq, 0 AS cq FROM judged WHERE debit_bounded
            UNION ALL SELECT credit, 0, moved, 0, kept FROM judged WHERE credit_bounded
        ) AS s GROUP BY s.id
    ), refused AS (SELECT (i - 1)::int AS leg, why FROM judged WHERE why IS NOT NULL ORDER BY i LIMIT 1),
    legs AS (
        SELECT array_agg(debit ORDER BY i) AS debits, array_agg(credit ORDER BY i) AS credits,
            array_agg(amount ORDER BY i) AS amounts, array_agg(resolves ORDER BY i) AS finals FROM judged
    ), changes AS (
        SELECT coalesce(array_agg(id), '{}') AS ids, array_agg(dp) AS dp, array_agg(cp) AS cp, array_agg(dq) AS dq,
            array_agg(cq) AS cq FROM change
    )
    SELECT legs.debits, legs.credits, legs.amounts, legs.finals, (SELECT leg FROM refused), (SELECT why FROM refused),
        changes.ids, changes.dp, changes.cp, changes.dq, changes.cq FROM legs, changes
$$"""

# As in 0004, but that holds are opened and closed set-wise; only what stays open is taken one by one.
WRITE_LEGS = """
CREATE OR REPLACE FUNCTION quotas.write_legs(
    operation bigint, now timestamptz, ids bigint[], kinds quotas.transfer_kind[], debits bigint[], credits bigint[],
    amounts bigint[], pendings bigint[], finals boolean[], expiries timestamptz[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    part record;
BEGIN
    INSERT INTO quotas.transfer (id, operation_id, kind, debit_id, credit_id, amount, pending_id, final, at)
    OVERRIDING SYSTEM VALUE
    SELECT u.id, operation, u.kind, u.debit, u.credit, u.amount, u.pending, u.final, now
    FROM unnest(ids, kinds, debits, credits, amounts, pendings, finals)
        AS u (id, kind, debit, credit, amount, pending, final);
    IF 'posted' = ALL (kinds) THEN RETURN; END IF;
    INSERT INTO quotas.pending (id, debit_id, credit_id, amount_left, expires_at)
    SELECT u.id, u.debit, u.credit, u.amount, u.expiry
    FROM unnest(ids, kinds, debits, credits, amounts, pendings, expiries)
        AS u (id, kind, debit, credit, amount, pending, expiry)
    WHERE u.kind = 'pending' AND u.pending IS NULL;
    FOR part IN
        SELECT u.pending, CASE u.kind WHEN 'pending' THEN u.amount ELSE -u.amount END AS amount
        FROM unnest(kinds, amounts, pendings, finals) AS u (kind, amount, pending, final)
        WHERE u.pending IS NOT NULL AND NOT u.final
    LOOP
        UPDATE quotas.pending p SET amount_left = p.amount_left + part.amount WHERE p.id = part.pending;
    END LOOP;
    DELETE FROM quotas.pending p USING unnest(pendings, finals) AS u (pending, final)
    WHERE u.final AND p.id = u.pending;
END $$"""

# As in 0004, but for the test of which operations are judged set-wise, and for what judges them.
POST = """
CREATE OR REPLACE FUNCTION quotas.post(
    scope text, key text, request_hash bytea, now timestamptz, reply jsonb, kinds quotas.transfer_kind[],
    debits bigint[], credits bigint[], amounts bigint[], pendings bigint[], finals boolean[], expiries timestamptz[],
    OUT refusal text, OUT refused_leg int, OUT short_account bigint, OUT operation_id bigint,
    OUT transfer_ids bigint[], OUT replayed boolean, OUT stored_reply jsonb
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    known quotas.operation; held quotas.pending; verdict record; amount bigint; released bigint;
    ids bigint[] := '{}'; dp bigint[] := '{}'; cp bigint[] := '{}'; dq bigint[] := '{}'; cq bigint[] := '{}';
    moved bigint; kept bigint; zero CONSTANT bigint := 0;
BEGIN
    replayed := false;
    SELECT * INTO known FROM quotas.operation o WHERE o.scope = post.scope AND o.key = post.key;
    IF known.id IS NULL THEN
        IF cardinality(kinds) > 1 THEN
            PERFORM FROM quotas.pending p WHERE p.id = ANY (pendings) ORDER BY p.id FOR UPDATE;
        END IF;
        IF cardinality(kinds) > 4 AND NOT EXISTS (
            SELECT FROM unnest(kinds, pendings, finals) AS u (kind, pending, final)
            WHERE u.pending IS NOT NULL AND (u.kind IN ('posted', 'pending') OR NOT u.final)
        ) AND (SELECT count(u) = count(DISTINCT u) FROM unnest(pendings) AS u) THEN
            SELECT w.debits, w.credits, w.amounts, w.finals, w.refused_leg, w.refusal, w.ids, w.dp, w.cp, w.dq, w.cq
            INTO debits, credits, amounts, finals, refused_leg, refusal, ids, dp, cp, dq, cq
            FROM quotas.weigh_legs(now, kinds, pendings, debits, credits, amounts) w;
            IF refusal IS NOT NULL THEN RETURN; END IF;
        ELSE FOR i IN 1 .. cardinality(kinds) LOOP
            held := NULL;
            IF pendings[i] IS NOT NULL THEN
                SELECT * INTO held FROM quotas.pending p WHERE p.id = pendings[i] FOR UPDATE;
                IF held.id IS NOT NULL THEN debits[i] := held.debit_id; credits[i] := held.credit_id; END IF;
            END IF;
            verdict := quotas.refusal_of_leg(kinds[i], debits[i], credits[i], amounts[i], pendings[i], held, now);
            IF verdict.refusal IS NOT NULL THEN
                refusal := verdict.refusal; refused_leg := i - 1; RETURN;
            END IF;
            IF kinds[i] IN ('void', 'expire') THEN amounts[i] := held.amount_left; END IF;
            amount := amounts[i];
            finals[i] := kinds[i] IN ('post', 'void', 'expire') AND (finals[i] OR amount = held.amount_left);
            moved := CASE WHEN kinds[i] IN ('posted', 'post') THEN amount ELSE 0 END;
            kept := CASE kinds[i] WHEN 'posted' THEN 0 WHEN 'pending' THEN amount
                ELSE -(CASE WHEN finals[i] THEN held.amount_left ELSE amount END) END;
            IF verdict.debit_bounded THEN
                ids := ids || debits[i]; dp := dp || moved; cp := cp || zero; dq := dq || kept; cq := cq || zero;
            END IF;
            IF verdict.credit_bounded THEN
                ids := ids || credits[i]; dp := dp || zero; cp := cp || moved; dq := dq || zero; cq := cq || kept;
            END IF;
        END LOOP; END IF;
        IF ids <> '{}' THEN
            short_account := quotas.move_balances(ids, dp, cp, dq, cq);
            IF short_account IS NOT NULL THEN refusal := 'exceeds_funds'; RETURN; END IF;
        END IF;
        transfer_ids := ARRAY(SELECT nextval('quotas.transfer_id_seq') FROM unnest(kinds));
        INSERT INTO quotas.operation (scope, key, request_hash, at, transfer_ids, reply)
        VALUES (post.scope, post.key, post.request_hash, now, transfer_ids, post.reply)
        ON CONFLICT DO NOTHING RETURNING id INTO operation_id;
        IF operation_id IS NOT NULL THEN
            PERFORM quotas.write_legs(operation_id, now, transfer_ids, kinds, debits, credits, amounts, pendings,
                finals, expiries);
            stored_reply := post.reply;
            RETURN;
        END IF;
        -- Somebody with the same key committed while we worked: take our balances back and answer as they did.
        PERFORM quotas.move_balances(ids, ARRAY(SELECT -x FROM unnest(dp) x), ARRAY(SELECT -x FROM unnest(cp) x),
            ARRAY(SELECT -x FROM unnest(dq) x), ARRAY(SELECT -x FROM unnest(cq) x));
        SELECT * INTO STRICT known FROM quotas.operation o WHERE o.scope = post.scope AND o.key = post.key;
    END IF;
    IF known.request_hash <> post.request_hash THEN refusal := 'key_reused'; RETURN; END IF;
    operation_id := known.id; transfer_ids := known.transfer_ids; replayed := true; stored_reply := known.reply;
END $$"""


def upgrade() -> None:
    """Create one function, put two in place of those of 0004, and drop the one that judged moves alone."""
    op.execute(WEIGH_LEGS)
    op.execute(WRITE_LEGS)
    op.execute(POST)
    op.execute("DROP FUNCTION quotas.refusal_of_many")


def downgrade() -> None:
    """As it was."""
    before = runpy.run_path(str(Path(__file__).with_name("0004_posting.py")))
    op.execute(before["REFUSAL_OF_MANY"])
    for name in ("POST", "WRITE_LEGS"):
        op.execute(before[name].replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    op.execute("DROP FUNCTION quotas.weigh_legs")
