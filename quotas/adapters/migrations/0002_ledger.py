"""The double-entry ledger: its tables, and the chain that seals what was posted. 0004 has the functions that post."""

from alembic import op

revision = "quotas_0002"
down_revision = "quotas_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create accounts, operations, transfers, open holds and blocks."""
    _accounts()
    _entries()
    _chain()


def downgrade() -> None:
    """Drop the ledger."""
    for name in ("seal", "chain_lines"):
        op.execute(f"DROP FUNCTION quotas.{name}")
    for name in ("block", "pending", "transfer", "operation", "balance", "account"):
        op.execute(f"DROP TABLE quotas.{name}")
    op.execute("DROP TYPE quotas.transfer_kind")


def _accounts() -> None:
    op.execute("CREATE TYPE quotas.transfer_kind AS ENUM ('posted', 'pending', 'post', 'void', 'expire')")
    op.execute("""
        CREATE TABLE quotas.account (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            code text NOT NULL UNIQUE CHECK (code <> ''),
            asset text NOT NULL CHECK (asset <> ''),
            owner text NOT NULL CHECK (owner <> ''),
            bounded boolean NOT NULL,
            closed boolean NOT NULL DEFAULT false,
            opened_at timestamptz NOT NULL
        )""")
    op.execute("CREATE INDEX account_owner ON quotas.account (owner)")
    # A cache of the transfers. Of a bounded account it is current; of any other it stands at the last sealed block,
    # so that nobody waits for a row that everybody changes. The CHECK is the last guard against an overdraft.
    op.execute("""
        CREATE TABLE quotas.balance (
            account_id bigint PRIMARY KEY REFERENCES quotas.account,
            debits_posted bigint NOT NULL DEFAULT 0 CHECK (debits_posted >= 0),
            credits_posted bigint NOT NULL DEFAULT 0 CHECK (credits_posted >= 0),
            debits_pending bigint NOT NULL DEFAULT 0 CHECK (debits_pending >= 0),
            credits_pending bigint NOT NULL DEFAULT 0 CHECK (credits_pending >= 0),
            floor bigint CHECK (floor <= 0),
            CONSTRAINT balance_above_floor CHECK (credits_posted - debits_posted - debits_pending >= floor)
        ) WITH (fillfactor = 50)""")


def _entries() -> None:
    op.execute("""
        CREATE TABLE quotas.operation (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            scope text NOT NULL CHECK (scope <> ''),
            key text NOT NULL CHECK (key <> ''),
            request_hash bytea NOT NULL CHECK (octet_length(request_hash) = 32),
            at timestamptz NOT NULL,
            transfer_ids bigint[] NOT NULL,
            reply jsonb,
            CONSTRAINT operation_once UNIQUE (scope, key)
        )""")
    # No foreign keys here: `quotas.post` is the only writer and has seen both accounts; a key check would lock the
    # rows that everybody shares. `heliu ledger verify` looks at the references.
    op.execute("""
        CREATE TABLE quotas.transfer (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
            operation_id bigint NOT NULL,
            kind quotas.transfer_kind NOT NULL,
            debit_id bigint NOT NULL,
            credit_id bigint NOT NULL,
            amount bigint NOT NULL CHECK (amount BETWEEN 1 AND 9007199254740992),
            pending_id bigint,
            final boolean NOT NULL,
            at timestamptz NOT NULL,
            CONSTRAINT transfer_between_two CHECK (debit_id <> credit_id),
            CONSTRAINT transfer_final_resolves CHECK (NOT final OR pending_id IS NOT NULL)
        )""")
    op.execute("CREATE INDEX transfer_order ON quotas.transfer (xid)")
    op.execute("CREATE UNIQUE INDEX transfer_resolves_once ON quotas.transfer (pending_id) WHERE final")
    op.execute("""
        CREATE TABLE quotas.pending (
            id bigint PRIMARY KEY,
            debit_id bigint NOT NULL,
            credit_id bigint NOT NULL,
            amount_left bigint NOT NULL CHECK (amount_left > 0),
            expires_at timestamptz NOT NULL,
            credit_bounded boolean NOT NULL DEFAULT true
        ) WITH (fillfactor = 70)""")
    op.execute("""
        CREATE TABLE quotas.block (
            number bigint PRIMARY KEY CHECK (number > 0),
            from_xid xid8 NOT NULL,
            until_xid xid8 NOT NULL,
            transfers bigint NOT NULL CHECK (transfers > 0),
            previous bytea NOT NULL CHECK (octet_length(previous) = 32),
            hash bytea NOT NULL CHECK (octet_length(hash) = 32),
            sealed_at timestamptz NOT NULL,
            CONSTRAINT block_covers_something CHECK (from_xid < until_xid)
        )""")
    for table in ("operation", "transfer", "block"):
        op.execute(f"""
            CREATE TRIGGER {table}_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON quotas.{table}
            FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")


def _chain() -> None:
    op.execute("""
        CREATE FUNCTION quotas.chain_lines(from_xid xid8, until_xid xid8) RETURNS text LANGUAGE sql STABLE AS $$
            SELECT string_agg(concat_ws('|', t.id, t.operation_id, t.kind, t.debit_id, t.credit_id, t.amount,
                coalesce(t.pending_id::text, ''), t.final, (extract(epoch FROM t.at) * 1000000)::bigint, o.scope,
                o.key),
                E'\\n' ORDER BY t.xid, t.id)
            FROM quotas.transfer t JOIN quotas.operation o ON o.id = t.operation_id
            WHERE t.xid >= chain_lines.from_xid AND t.xid < chain_lines.until_xid
        $$""")
    # Everything below the oldest running transaction is final, so a block's content can never change after it is read.
    op.execute("""
        CREATE FUNCTION quotas.seal(now timestamptz, at_most bigint) RETURNS SETOF quotas.block LANGUAGE plpgsql AS $$
        DECLARE
            head quotas.block; start xid8; stop xid8; cut xid8; many bigint;
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtext('quotas.seal'));
            SELECT * INTO head FROM quotas.block b ORDER BY b.number DESC LIMIT 1;
            start := coalesce(head.until_xid, '0');
            stop := pg_snapshot_xmin(pg_current_snapshot());
            SELECT t.xid INTO cut FROM quotas.transfer t
            WHERE t.xid > start AND t.xid < stop ORDER BY t.xid OFFSET at_most LIMIT 1;
            stop := coalesce(cut, stop);
            SELECT count(*) INTO many FROM quotas.transfer t WHERE t.xid >= start AND t.xid < stop;
            IF many = 0 THEN RETURN; END IF;
            UPDATE quotas.balance b SET debits_posted = b.debits_posted + m.dp, credits_posted = b.credits_posted + m.cp
            FROM (
                SELECT s.account_id, sum(s.dp)::bigint dp, sum(s.cp)::bigint cp FROM (
                    SELECT t.debit_id AS account_id, t.amount AS dp, 0 AS cp FROM quotas.transfer t
                    WHERE t.xid >= start AND t.xid < stop AND t.kind IN ('posted', 'post')
                    UNION ALL
                    SELECT t.credit_id, 0, t.amount FROM quotas.transfer t
                    WHERE t.xid >= start AND t.xid < stop AND t.kind IN ('posted', 'post')
                ) s JOIN quotas.account a ON a.id = s.account_id AND NOT a.bounded GROUP BY s.account_id
            ) m WHERE b.account_id = m.account_id;
            RETURN QUERY INSERT INTO quotas.block
            SELECT coalesce(head.number, 0) + 1, start, stop, many,
                coalesce(head.hash, decode(repeat('00', 32), 'hex')),
                sha256(coalesce(head.hash, decode(repeat('00', 32), 'hex'))
                    || convert_to(quotas.chain_lines(start, stop), 'UTF8')), now
            RETURNING *;
        END $$""")
