"""A posting of one transfer by fewer steps of the server, and one sequence that numbers operations and transfers.

What PL/pgSQL evaluates is prepared anew in each transaction, so `post_one` becomes two functions without branches, each
of which returns a number instead of a row. The operation's key comes first in its index, for many share a scope.
"""

import runpy
from pathlib import Path

from alembic import op

revision = "quotas_0020"
down_revision = "quotas_0019"
branch_labels = None
depends_on = None

# One leg that opens a hold or moves money at once, out of a bounded account into one without bounds. Returns its
# number, which is its operation's too. Null when anything but plain success was met: nothing has changed, and
# `quotas.post` says why.
TAKE_ONE = """
CREATE FUNCTION quotas.take_one(
    scope text, key text, request_hash bytea, now timestamptz, reply jsonb, kind quotas.transfer_kind,
    debit bigint, credit bigint, amount bigint, expiry timestamptz
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    number bigint;
BEGIN
    UPDATE quotas.balance b SET
        debits_posted = b.debits_posted + CASE take_one.kind WHEN 'posted' THEN take_one.amount ELSE 0 END,
        debits_pending = b.debits_pending + CASE take_one.kind WHEN 'pending' THEN take_one.amount ELSE 0 END
    WHERE b.account_id = take_one.debit AND take_one.kind IN ('posted', 'pending')
        AND take_one.amount BETWEEN 1 AND 9007199254740992
        AND b.credits_posted - b.debits_posted - b.debits_pending - take_one.amount >= b.floor
        AND (SELECT d.bounded FROM quotas.account d JOIN quotas.account c ON c.asset = d.asset
            WHERE d.id = take_one.debit AND c.id = take_one.credit AND NOT d.closed AND NOT c.closed AND NOT c.bounded);
    IF NOT FOUND THEN RETURN NULL; END IF;
    number := nextval('quotas.transfer_id_seq');
    INSERT INTO quotas.operation (id, scope, key, request_hash, at, transfer_ids, reply)
    VALUES (number, take_one.scope, take_one.key, take_one.request_hash, take_one.now, ARRAY[number], take_one.reply)
    ON CONFLICT ON CONSTRAINT operation_once DO NOTHING;
    IF NOT FOUND THEN
        UPDATE quotas.balance b SET
            debits_posted = b.debits_posted - CASE take_one.kind WHEN 'posted' THEN take_one.amount ELSE 0 END,
            debits_pending = b.debits_pending - CASE take_one.kind WHEN 'pending' THEN take_one.amount ELSE 0 END
        WHERE b.account_id = take_one.debit;
        RETURN NULL;
    END IF;
    INSERT INTO quotas.transfer (id, operation_id, kind, debit_id, credit_id, amount, final, at)
    OVERRIDING SYSTEM VALUE
    VALUES (number, number, take_one.kind, take_one.debit, take_one.credit, take_one.amount, false, take_one.now);
    IF take_one.kind = 'pending' THEN
        INSERT INTO quotas.pending VALUES (number, take_one.debit, take_one.credit, take_one.amount, expiry, false);
    END IF;
    RETURN number;
END $$"""

# What the end of a hold does to its debit account, and to its credit account where that is bounded too.
MOVE_HELD = """
    IF NOT held.credit_bounded THEN
        UPDATE quotas.balance b
        SET debits_posted = b.debits_posted {plus} taken, debits_pending = b.debits_pending {minus} held.amount_left
        WHERE b.account_id = held.debit_id AND b.floor IS NOT NULL;
    ELSE UPDATE quotas.balance b SET
        debits_posted = b.debits_posted {plus} CASE b.account_id WHEN held.debit_id THEN taken ELSE 0 END,
        debits_pending = b.debits_pending {minus} CASE b.account_id WHEN held.debit_id THEN held.amount_left ELSE 0 END,
        credits_posted = b.credits_posted {plus} CASE b.account_id WHEN held.credit_id THEN taken ELSE 0 END,
        credits_pending = b.credits_pending
            {minus} CASE b.account_id WHEN held.credit_id THEN held.amount_left ELSE 0 END
    WHERE b.account_id = ANY (ARRAY[held.debit_id, held.credit_id]) AND b.floor IS NOT NULL;
    END IF;"""

# One leg that resolves a hold for good: a last post, a void, an expiry. Returns as `take_one` does.
RESOLVE_ONE = """
CREATE FUNCTION quotas.resolve_one(
    scope text, key text, request_hash bytea, now timestamptz, reply jsonb, kind quotas.transfer_kind,
    pending bigint, amount bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    held quotas.pending; taken bigint := 0; number bigint;
BEGIN
    DELETE FROM quotas.pending p WHERE p.id = resolve_one.pending AND CASE resolve_one.kind
        WHEN 'post' THEN p.expires_at > resolve_one.now AND resolve_one.amount BETWEEN 1 AND p.amount_left
        WHEN 'void' THEN true WHEN 'expire' THEN p.expires_at <= resolve_one.now ELSE false END
    RETURNING p.* INTO held;
    IF NOT FOUND THEN RETURN NULL; END IF;
    IF resolve_one.kind = 'post' THEN taken := amount; ELSE amount := held.amount_left; END IF;
    {move}
    number := nextval('quotas.transfer_id_seq');
    INSERT INTO quotas.operation (id, scope, key, request_hash, at, transfer_ids, reply)
    VALUES (number, resolve_one.scope, resolve_one.key, resolve_one.request_hash, resolve_one.now, ARRAY[number],
        resolve_one.reply)
    ON CONFLICT ON CONSTRAINT operation_once DO NOTHING;
    IF NOT FOUND THEN
        {move_back}
        INSERT INTO quotas.pending SELECT held.*;
        RETURN NULL;
    END IF;
    INSERT INTO quotas.transfer (id, operation_id, kind, debit_id, credit_id, amount, pending_id, final, at)
    OVERRIDING SYSTEM VALUE VALUES (number, number, resolve_one.kind, held.debit_id, held.credit_id,
        resolve_one.amount, held.id, true, resolve_one.now);
    RETURN number;
END $$"""


def upgrade() -> None:
    """Number operations as transfers are, after all that were numbered so far; the key first; the two for the one."""
    op.execute("""
        SELECT setval('quotas.transfer_id_seq', greatest(a.last_value, b.last_value), a.is_called OR b.is_called)
        FROM quotas.transfer_id_seq a, quotas.operation_id_seq b""")
    op.execute("ALTER TABLE quotas.operation ALTER id DROP IDENTITY")
    op.execute("ALTER TABLE quotas.operation ALTER id SET DEFAULT nextval('quotas.transfer_id_seq')")
    _unique("key, scope")
    op.execute("DROP FUNCTION quotas.post_one")
    op.execute(TAKE_ONE)
    move, move_back = MOVE_HELD.format(plus="+", minus="-"), MOVE_HELD.format(plus="-", minus="+")
    op.execute(RESOLVE_ONE.format(move=move, move_back=move_back))


def downgrade() -> None:
    """As it was."""
    op.execute("DROP FUNCTION quotas.take_one, quotas.resolve_one")
    op.execute(runpy.run_path(str(Path(__file__).with_name("0004_posting.py")))["POST_ONE"])
    _unique("scope, key")
    op.execute("ALTER TABLE quotas.operation ALTER id DROP DEFAULT, ALTER id ADD GENERATED ALWAYS AS IDENTITY")
    op.execute("""
        SELECT setval('quotas.operation_id_seq', last_value, is_called) FROM quotas.transfer_id_seq""")


def _unique(columns: str) -> None:
    op.execute(f"""
        ALTER TABLE quotas.operation DROP CONSTRAINT operation_once,
            ADD CONSTRAINT operation_once UNIQUE ({columns})""")
