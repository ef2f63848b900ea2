"""The functions that post to the ledger: the only code that writes its tables."""

from alembic import op

revision = "quotas_0004"
down_revision = "quotas_0003"
branch_labels = None
depends_on = None

# The ladder of refusals of one leg, funds apart: quotas/ledger.py `why_not` says the same, and a property test that
# they agree. `held` is the open hold the leg names, all null when there is none.
REFUSAL_OF_LEG = """
CREATE FUNCTION quotas.refusal_of_leg(
    kind quotas.transfer_kind, debit bigint, credit bigint, amount bigint, pending bigint, held quotas.pending,
    now timestamptz, OUT refusal text, OUT debit_bounded boolean, OUT credit_bounded boolean
) LANGUAGE plpgsql AS $$
DECLARE
    one quotas.account; other quotas.account;
BEGIN
    IF kind IN ('posted', 'pending', 'post') THEN
        IF amount IS NULL OR amount < 1 THEN refusal := 'amount_not_positive'; RETURN; END IF;
        IF amount > 9007199254740992 THEN refusal := 'amount_too_large'; RETURN; END IF;
    END IF;
    IF pending IS NOT NULL OR kind IN ('post', 'void', 'expire') THEN
        IF held.id IS NULL THEN
            refusal := CASE WHEN EXISTS (SELECT FROM quotas.transfer t WHERE t.id = pending AND t.kind = 'pending')
                THEN 'pending_resolved' ELSE 'pending_unknown' END;
            RETURN;
        END IF;
        IF held.expires_at <= now AND kind IN ('post', 'pending') THEN refusal := 'pending_expired'; RETURN; END IF;
        IF held.expires_at > now AND kind = 'expire' THEN refusal := 'pending_not_expired'; RETURN; END IF;
        IF kind = 'post' AND amount > held.amount_left THEN refusal := 'exceeds_pending'; RETURN; END IF;
    END IF;
    IF debit = credit THEN refusal := 'same_account'; RETURN; END IF;
    SELECT * INTO one FROM quotas.account a WHERE a.id = debit;
    SELECT * INTO other FROM quotas.account a WHERE a.id = credit;
    IF one.id IS NULL OR other.id IS NULL THEN refusal := 'account_unknown'; RETURN; END IF;
    IF one.asset <> other.asset THEN refusal := 'asset_mismatch'; RETURN; END IF;
    IF kind IN ('posted', 'pending') AND (one.closed OR other.closed) THEN
        refusal := 'account_closed'; RETURN;
    END IF;
    debit_bounded := one.bounded; credit_bounded := other.bounded;
END $$"""

# The same ladder for many legs that move money at once, set-wise: the first leg that is refused, and why.
REFUSAL_OF_MANY = """
CREATE FUNCTION quotas.refusal_of_many(
    debits bigint[], credits bigint[], amounts bigint[], OUT refused_leg int, OUT refusal text
) LANGUAGE sql AS $$
    SELECT s.i - 1, s.why FROM (
        SELECT u.i, CASE
            WHEN u.amount IS NULL OR u.amount < 1 THEN 'amount_not_positive'
            WHEN u.amount > 9007199254740992 THEN 'amount_too_large'
            WHEN u.debit = u.credit THEN 'same_account'
            WHEN d.id IS NULL OR c.id IS NULL THEN 'account_unknown'
            WHEN d.asset <> c.asset THEN 'asset_mismatch'
            WHEN d.closed OR c.closed THEN 'account_closed' END AS why
        FROM unnest(debits, credits, amounts) WITH ORDINALITY AS u (debit, credit, amount, i)
        LEFT JOIN quotas.account d ON d.id = u.debit LEFT JOIN quotas.account c ON c.id = u.credit
    ) s WHERE s.why IS NOT NULL ORDER BY s.i LIMIT 1
$$"""

# Apply changes to bounded balances in account order, each by one conditional UPDATE; many at once after locking them in
# that order. Returns the first account that lacks funds, with nothing changed; null when all were applied.
MOVE_BALANCES = """
CREATE FUNCTION quotas.move_balances(ids bigint[], dp bigint[], cp bigint[], dq bigint[], cq bigint[])
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    change record;
    short bigint;
BEGIN
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
    END IF;
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

# Write transfers that were found good, and what they do to the open holds.
WRITE_LEGS = """
CREATE FUNCTION quotas.write_legs(
    operation bigint, now timestamptz, ids bigint[], kinds quotas.transfer_kind[], debits bigint[], credits bigint[],
    amounts bigint[], pendings bigint[], finals boolean[], expiries timestamptz[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO quotas.transfer (id, operation_id, kind, debit_id, credit_id, amount, pending_id, final, at)
    OVERRIDING SYSTEM VALUE
    SELECT u.id, operation, u.kind, u.debit, u.credit, u.amount, u.pending, u.final, now
    FROM unnest(ids, kinds, debits, credits, amounts, pendings, finals)
        AS u (id, kind, debit, credit, amount, pending, final);
    IF 'posted' = ALL (kinds) THEN RETURN; END IF;
    FOR i IN 1 .. cardinality(ids) LOOP
        IF kinds[i] = 'pending' AND pendings[i] IS NULL THEN
            INSERT INTO quotas.pending VALUES (ids[i], debits[i], credits[i], amounts[i], expiries[i]);
        ELSIF finals[i] THEN
            DELETE FROM quotas.pending p WHERE p.id = pendings[i];
        ELSIF kinds[i] <> 'posted' THEN
            UPDATE quotas.pending p
            SET amount_left = amount_left + CASE kinds[i] WHEN 'pending' THEN amounts[i] ELSE -amounts[i] END
            WHERE p.id = pendings[i];
        END IF;
    END LOOP;
END $$"""

# The common case, one leg, in as few steps as it can be: open a hold or move money from a bounded account, or resolve
# a hold. Whatever is not plain success returns no operation and has changed nothing; ask `quotas.post`, which says why.
POST_ONE = """
CREATE FUNCTION quotas.post_one(
    scope text, key text, request_hash bytea, now timestamptz, reply jsonb, kind quotas.transfer_kind,
    debit bigint, credit bigint, amount bigint, pending bigint, expiry timestamptz,
    OUT operation_id bigint, OUT transfer_id bigint
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    opens boolean := post_one.pending IS NULL; held quotas.pending; moved bigint := 0; kept bigint;
BEGIN
    IF opens THEN
        IF post_one.kind NOT IN ('posted', 'pending') OR post_one.amount IS NULL OR post_one.debit = post_one.credit
            OR post_one.amount NOT BETWEEN 1 AND 9007199254740992 THEN RETURN; END IF;
        PERFORM FROM quotas.account d JOIN quotas.account c ON c.asset = d.asset AND NOT c.closed AND NOT c.bounded
        WHERE d.id = post_one.debit AND c.id = post_one.credit AND d.bounded AND NOT d.closed;
        IF NOT FOUND THEN RETURN; END IF;
        IF post_one.kind = 'posted' THEN moved := post_one.amount; kept := 0; ELSE kept := post_one.amount; END IF;
        UPDATE quotas.balance b SET debits_posted = b.debits_posted + moved, debits_pending = b.debits_pending + kept
        WHERE b.account_id = post_one.debit
            AND b.credits_posted - b.debits_posted - b.debits_pending - post_one.amount >= b.floor;
        IF NOT FOUND THEN RETURN; END IF;
    ELSE
        DELETE FROM quotas.pending p WHERE p.id = post_one.pending AND CASE post_one.kind
            WHEN 'post' THEN p.expires_at > post_one.now AND post_one.amount BETWEEN 1 AND p.amount_left
            WHEN 'void' THEN true WHEN 'expire' THEN p.expires_at <= post_one.now ELSE false END
        RETURNING p.* INTO held;
        IF NOT FOUND THEN RETURN; END IF;
        debit := held.debit_id; credit := held.credit_id; kept := -held.amount_left;
        IF post_one.kind = 'post' THEN moved := post_one.amount; ELSE amount := held.amount_left; END IF;
        IF NOT held.credit_bounded THEN
            UPDATE quotas.balance b
            SET debits_posted = b.debits_posted + moved, debits_pending = b.debits_pending + kept
            WHERE b.account_id = post_one.debit AND b.floor IS NOT NULL;
        ELSE UPDATE quotas.balance b SET
            debits_posted = b.debits_posted + CASE WHEN b.account_id = post_one.debit THEN moved ELSE 0 END,
            debits_pending = b.debits_pending + CASE WHEN b.account_id = post_one.debit THEN kept ELSE 0 END,
            credits_posted = b.credits_posted + CASE WHEN b.account_id = post_one.debit THEN 0 ELSE moved END,
            credits_pending = b.credits_pending + CASE WHEN b.account_id = post_one.debit THEN 0 ELSE kept END
        WHERE b.account_id = ANY (ARRAY[post_one.debit, post_one.credit]) AND b.floor IS NOT NULL;
        END IF;
    END IF;
    transfer_id := nextval('quotas.transfer_id_seq');
    INSERT INTO quotas.operation (scope, key, request_hash, at, transfer_ids, reply)
    VALUES (post_one.scope, post_one.key, post_one.request_hash, post_one.now, ARRAY[post_one.transfer_id],
        post_one.reply)
    ON CONFLICT DO NOTHING RETURNING id INTO operation_id;
    IF operation_id IS NULL THEN
        UPDATE quotas.balance b SET
            debits_posted = b.debits_posted - CASE WHEN b.account_id = post_one.debit THEN moved ELSE 0 END,
            debits_pending = b.debits_pending - CASE WHEN b.account_id = post_one.debit THEN kept ELSE 0 END,
            credits_posted = b.credits_posted - CASE WHEN b.account_id = post_one.debit THEN 0 ELSE moved END,
            credits_pending = b.credits_pending - CASE WHEN b.account_id = post_one.debit THEN 0 ELSE kept END
        WHERE b.account_id = ANY (ARRAY[post_one.debit, post_one.credit]) AND b.floor IS NOT NULL;
        IF NOT opens THEN INSERT INTO quotas.pending SELECT held.*; END IF;
        RETURN;
    END IF;
    INSERT INTO quotas.transfer (id, operation_id, kind, debit_id, credit_id, amount, pending_id, final, at)
    OVERRIDING SYSTEM VALUE VALUES (post_one.transfer_id, post_one.operation_id, post_one.kind, post_one.debit,
        post_one.credit, post_one.amount, post_one.pending, NOT opens, post_one.now);
    IF opens AND post_one.kind = 'pending' THEN
        INSERT INTO quotas.pending
        VALUES (post_one.transfer_id, post_one.debit, post_one.credit, post_one.amount, expiry, false);
    END IF;
END $$"""

# The door into the ledger. One operation is all of its legs or nothing; a refusal changes nothing and leaves the
# caller's transaction usable. The same (scope, key) with the same request answers as the first time did.
POST = """
CREATE FUNCTION quotas.post(
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
        IF cardinality(kinds) > 4 AND 'posted' = ALL (kinds) THEN
            SELECT m.refusal, m.refused_leg INTO refusal, refused_leg
            FROM quotas.refusal_of_many(debits, credits, amounts) m;
            IF refusal IS NOT NULL THEN RETURN; END IF;
            finals := array_fill(false, ARRAY[cardinality(kinds)]);
            SELECT coalesce(array_agg(s.id), '{}'), array_agg(s.dp), array_agg(s.cp), array_agg(zero), array_agg(zero)
            INTO ids, dp, cp, dq, cq FROM (
                SELECT u.id, sum(u.dp)::bigint AS dp, sum(u.cp)::bigint AS cp FROM (
                    SELECT d.id, d.amount AS dp, zero AS cp FROM unnest(debits, amounts) AS d (id, amount)
                    UNION ALL SELECT c.id, zero, c.amount FROM unnest(credits, amounts) AS c (id, amount)
                ) u JOIN quotas.account a ON a.id = u.id AND a.bounded GROUP BY u.id
            ) s;
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

FUNCTIONS = {
    "refusal_of_leg": REFUSAL_OF_LEG,
    "refusal_of_many": REFUSAL_OF_MANY,
    "move_balances": MOVE_BALANCES,
    "write_legs": WRITE_LEGS,
    "post_one": POST_ONE,
    "post": POST,
}


def upgrade() -> None:
    """Create them."""
    for statement in FUNCTIONS.values():
        op.execute(statement)


def downgrade() -> None:
    """Drop them."""
    for name in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION quotas.{name}")
