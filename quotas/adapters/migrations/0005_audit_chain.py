"""The audit log's chain: entries are sealed in blocks after they are committed, each block over the one before."""

from alembic import op

revision = "quotas_0005"
down_revision = "quotas_0004"
branch_labels = None
depends_on = None

# One entry as it is exported and hashed: anybody can check an export against the blocks with sha256sum.
AUDIT_LINE = """
CREATE FUNCTION quotas.audit_line(e quotas.audit_entry) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT json_build_object(
        'seq', e.seq, 'at', to_char(e.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'actor_kind', e.actor_kind, 'actor_id', e.actor_id, 'actor_firm_id', e.actor_firm_id, 'origin', e.origin,
        'action', e.action, 'subject', e.subject, 'firm_id', e.firm_id, 'before', e.before, 'after', e.after,
        'reason', e.reason)::text
$$"""

AUDIT_LINES = """
CREATE FUNCTION quotas.audit_lines(from_xid xid8, until_xid xid8) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT string_agg(quotas.audit_line(e), E'\\n' ORDER BY e.xid, e.seq) FROM quotas.audit_entry e
    WHERE e.xid >= audit_lines.from_xid AND e.xid < audit_lines.until_xid
$$"""

# Everything below the oldest running transaction is final, so a block's content can never change after it is read.
SEAL_AUDIT = """
CREATE FUNCTION quotas.seal_audit(now timestamptz, at_most bigint) RETURNS SETOF quotas.audit_block
LANGUAGE plpgsql AS $$
DECLARE
    head quotas.audit_block; start xid8; stop xid8; cut xid8; many bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('quotas.seal_audit'));
    SELECT * INTO head FROM quotas.audit_block b ORDER BY b.number DESC LIMIT 1;
    start := coalesce(head.until_xid, '0');
    stop := pg_snapshot_xmin(pg_current_snapshot());
    SELECT e.xid INTO cut FROM quotas.audit_entry e
    WHERE e.xid > start AND e.xid < stop ORDER BY e.xid OFFSET at_most LIMIT 1;
    stop := coalesce(cut, stop);
    SELECT count(*) INTO many FROM quotas.audit_entry e WHERE e.xid >= start AND e.xid < stop;
    IF many = 0 THEN RETURN; END IF;
    RETURN QUERY INSERT INTO quotas.audit_block
    SELECT coalesce(head.number, 0) + 1, start, stop, many, coalesce(head.hash, decode(repeat('00', 32), 'hex')),
        sha256(coalesce(head.hash, decode(repeat('00', 32), 'hex'))
            || convert_to(quotas.audit_lines(start, stop), 'UTF8')), now
    RETURNING *;
END $$"""


def upgrade() -> None:
    """Give every entry its transaction, and seal them."""
    op.execute("ALTER TABLE quotas.audit_entry ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id()")
    op.execute("CREATE INDEX audit_entry_order ON quotas.audit_entry (xid, seq)")
    op.execute("""
        CREATE TABLE quotas.audit_block (
            number bigint PRIMARY KEY CHECK (number > 0),
            from_xid xid8 NOT NULL,
            until_xid xid8 NOT NULL,
            entries bigint NOT NULL CHECK (entries > 0),
            previous bytea NOT NULL CHECK (octet_length(previous) = 32),
            hash bytea NOT NULL CHECK (octet_length(hash) = 32),
            sealed_at timestamptz NOT NULL,
            CONSTRAINT audit_block_covers_something CHECK (from_xid < until_xid)
        )""")
    op.execute("""
        CREATE TRIGGER audit_block_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON quotas.audit_block
            FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")
    op.execute(AUDIT_LINE)
    op.execute(AUDIT_LINES)
    op.execute(SEAL_AUDIT)


def downgrade() -> None:
    """Forget the chain; the entries stay."""
    for name in ("seal_audit", "audit_lines", "audit_line"):
        op.execute(f"DROP FUNCTION quotas.{name}")
    op.execute("DROP TABLE quotas.audit_block")
    op.execute("ALTER TABLE quotas.audit_entry DROP COLUMN xid")
