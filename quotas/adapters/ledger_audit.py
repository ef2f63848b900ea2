"""Examine the live ledger: every invariant that can be computed from its own tables, set by set, in the database."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quotas.adapters.price_audit import PRICES
from quotas.adapters.promise_audit import LEASES, TARIFFS, VOUCHERS
from quotas.adapters.statement_audit import STATEMENTS
from quotas.vocabulary import Finding

# Each query returns (about, detail) rows, and none when the invariant holds.
_QUESTIONS: tuple[tuple[str, str], ...] = (
    # Both accounts of a transfer exist and count the same asset, so debits = credits per asset.
    ("L1", """
        SELECT 'transfer ' || t.id,
            'it joins ' || coalesce(d.asset, 'nothing') || ' and ' || coalesce(c.asset, 'nothing')
        FROM quotas.transfer t LEFT JOIN quotas.account d ON d.id = t.debit_id
        LEFT JOIN quotas.account c ON c.id = t.credit_id WHERE d.asset IS DISTINCT FROM c.asset OR d.id IS NULL"""),
    ("L1", """
        WITH sealed AS (SELECT coalesce(max(until_xid), '0') AS upto FROM quotas.block), moves AS (
            SELECT t.debit_id AS account_id, t.amount AS dp, 0 AS cp, t.xid FROM quotas.transfer t
            WHERE t.kind IN ('posted', 'post')
            UNION ALL SELECT t.credit_id, 0, t.amount, t.xid FROM quotas.transfer t WHERE t.kind IN ('posted', 'post')
        ), replayed AS (
            SELECT a.id, coalesce(sum(m.dp), 0) AS dp, coalesce(sum(m.cp), 0) AS cp
            FROM quotas.account a CROSS JOIN sealed
            LEFT JOIN moves m ON m.account_id = a.id AND (a.bounded OR m.xid < sealed.upto) GROUP BY a.id
        )
        SELECT a.code, 'the cache says ' || b.debits_posted || '/' || b.credits_posted || ', a replay '
            || r.dp || '/' || r.cp
        FROM replayed r JOIN quotas.account a ON a.id = r.id LEFT JOIN quotas.balance b ON b.account_id = r.id
        WHERE (b.debits_posted, b.credits_posted) IS DISTINCT FROM (r.dp, r.cp)"""),
    ("L1", """
        WITH kept AS (
            SELECT s.account_id, sum(s.dq) AS dq, sum(s.cq) AS cq FROM (
                SELECT debit_id AS account_id, amount_left AS dq, 0 AS cq FROM quotas.pending
                UNION ALL SELECT credit_id, 0, amount_left FROM quotas.pending) s GROUP BY s.account_id
        )
        SELECT a.code, 'the cache holds ' || b.debits_pending || '/' || b.credits_pending || ', the open holds say '
            || coalesce(k.dq, 0) || '/' || coalesce(k.cq, 0)
        FROM quotas.account a JOIN quotas.balance b ON b.account_id = a.id LEFT JOIN kept k ON k.account_id = a.id
        WHERE a.bounded AND (b.debits_pending, b.credits_pending)
            IS DISTINCT FROM (coalesce(k.dq, 0), coalesce(k.cq, 0))"""),
    ("L1", """
        SELECT a.code, 'available ' || (b.credits_posted - b.debits_posted - b.debits_pending) || ' is below its floor'
        FROM quotas.account a JOIN quotas.balance b ON b.account_id = a.id
        WHERE a.bounded AND b.credits_posted - b.debits_posted - b.debits_pending < coalesce(b.floor, 0)"""),
    ("L2", """
        WITH held AS (
            SELECT coalesce(pending_id, id) AS id, sum(amount) AS amount
            FROM quotas.transfer WHERE kind = 'pending' GROUP BY 1
        ), taken AS (
            SELECT pending_id AS id, sum(amount) FILTER (WHERE kind = 'post') AS amount, sum(final::int) AS finals
            FROM quotas.transfer WHERE kind IN ('post', 'void', 'expire') GROUP BY 1
        )
        SELECT 'hold ' || coalesce(h.id, t.id), CASE
            WHEN h.id IS NULL THEN 'resolved but never held'
            WHEN t.amount > h.amount THEN t.amount || ' taken of ' || h.amount
            WHEN t.finals > 1 THEN 'resolved ' || t.finals || ' times'
            WHEN coalesce(t.finals, 0) = 0 AND p.id IS NULL THEN 'neither open nor resolved'
            WHEN t.finals = 1 AND p.id IS NOT NULL THEN 'resolved and still open'
            ELSE 'open with ' || p.amount_left || ' left of ' || h.amount || ' less ' || coalesce(t.amount, 0) END
        FROM held h FULL JOIN taken t ON t.id = h.id LEFT JOIN quotas.pending p ON p.id = coalesce(h.id, t.id)
        WHERE h.id IS NULL OR t.amount > h.amount OR t.finals > 1
            OR (coalesce(t.finals, 0) = 0) <> (p.id IS NOT NULL)
            OR (p.id IS NOT NULL AND p.amount_left <> h.amount - coalesce(t.amount, 0))"""),
    ("L1", """
        SELECT 'operation ' || o.id, 'it names ' || cardinality(o.transfer_ids) || ' transfers and has ' || count(t.id)
            || CASE WHEN bool_or(t.at <> o.at) THEN ', of another time' ELSE '' END
        FROM quotas.operation o LEFT JOIN quotas.transfer t ON t.operation_id = o.id
        GROUP BY o.id HAVING array_agg(t.id ORDER BY t.id) IS DISTINCT FROM o.transfer_ids OR bool_or(t.at <> o.at)"""),
)  # fmt: skip


# Where the ledger meets money's nouns: credit lines, holds, leases, charges, usage.
_NOUNS: tuple[tuple[str, str], ...] = (
    ("L1", """
        SELECT a.code, 'it may go down to ' || coalesce(b.floor::text, 'any depth') || ', the audit log says '
            || -coalesce(granted.line, 0)
        FROM quotas.account a JOIN quotas.balance b ON b.account_id = a.id LEFT JOIN LATERAL (
            SELECT (e.after ->> 'credit_line')::bigint AS line FROM quotas.audit_entry e
            WHERE e.subject = a.owner AND e.action = 'cash.credit_line' ORDER BY e.seq DESC LIMIT 1) granted ON true
        WHERE a.bounded <> (b.floor IS NOT NULL) OR b.floor IS DISTINCT FROM CASE WHEN a.bounded
            OR a.code LIKE 'voucher:%' OR a.code LIKE 'programme:%pool' OR a.code LIKE 'firm:%' AND a.asset = 'CNY'
            THEN -coalesce(granted.line, 0) END"""),
    ("L2", """
        WITH named AS (
            SELECT h.id, h.cash_pending_id AS pending_id, h.state = 'open' AS open FROM quotas.compute_hold h
            UNION ALL SELECT h.id, (part ->> 'pending_id')::bigint, h.state = 'open'
            FROM quotas.compute_hold h, jsonb_array_elements(h.parts) AS part
        )
        SELECT n.id, CASE WHEN n.open THEN 'open, and its transfer is resolved' ELSE 'over, and money is still held' END
        FROM named n LEFT JOIN quotas.pending p ON p.id = n.pending_id
        WHERE n.pending_id IS NOT NULL AND n.open <> (p.id IS NOT NULL)"""),
    ("L2", """
        SELECT l.id, 'over, and money is still held' FROM quotas.allowance_part l
        JOIN quotas.pending p ON p.id = l.pending_id WHERE l.state <> 'open'"""),
    ("L2", """
        SELECT 'pending transfer ' || p.id, 'no hold and no lease names it' FROM quotas.pending p
        JOIN quotas.transfer t ON t.id = p.id
        JOIN quotas.operation o ON o.id = t.operation_id AND o.scope IN ('hold', 'lease')
        WHERE NOT EXISTS (SELECT FROM quotas.compute_hold h WHERE h.cash_pending_id = p.id)
        AND p.id NOT IN (SELECT l.pending_id FROM quotas.allowance_part l)
        AND NOT EXISTS (SELECT FROM quotas.compute_hold h, jsonb_array_elements(h.parts) AS part
            WHERE (part ->> 'pending_id')::bigint = p.id)"""),
    ("L3", """
        SELECT 'charge ' || c.id, 'its records count ' || u.input || '/' || u.cached || '/' || u.output || '/'
            || u.quantity || ', the line ' || c.input || '/' || c.cached_input || '/' || c.output || '/' || c.quantity
        FROM quotas.charge c JOIN (
            SELECT charge_id, sum(input) AS input, sum(cached_input) AS cached, sum(output) AS output,
                sum(quantity) AS quantity, count(*) AS many
            FROM quotas.token_usage GROUP BY charge_id) u ON u.charge_id = c.id
        WHERE (u.input, u.cached, u.output, u.quantity, u.many)
            IS DISTINCT FROM (c.input, c.cached_input, c.output, c.quantity, c.requests)"""),
    ("L3", """
        SELECT 'charge ' || c.id, 'no usage stands behind it' FROM quotas.charge c
        WHERE c.reverses IS NULL AND NOT EXISTS (SELECT FROM quotas.token_usage t WHERE t.charge_id = c.id)
        AND NOT EXISTS (SELECT FROM quotas.compute_usage g WHERE g.charge_id = c.id)"""),
    ("L3", """
        SELECT 'charge ' || c.id, 'it is of ' || c.gpu_ms || ' GPU-ms from ' || c.first_at || ' to ' || c.last_at
            || ', its usage of ' || u.gpu_ms || ' from ' || u.started_at || ' to ' || u.ended_at
        FROM quotas.compute_usage u JOIN quotas.charge c ON c.id = u.charge_id
        WHERE (u.gpu_ms, u.started_at, u.ended_at) IS DISTINCT FROM (c.gpu_ms, c.first_at, c.last_at)"""),
    ("L3", """
        SELECT 'statement ' || s.firm_id || ' ' || s.period, 'there is none, and a later month is closed'
        FROM (SELECT firm_id, period FROM quotas.charge UNION SELECT firm_id, period FROM quotas.cash_movement) s
        WHERE NOT EXISTS (SELECT FROM quotas.statement d WHERE (d.firm_id, d.period) = (s.firm_id, s.period))
        AND EXISTS (SELECT FROM quotas.statement d WHERE d.firm_id = s.firm_id AND d.period > s.period)"""),
    ("L3", """
        SELECT 'usage ' || t.source || ' ' || t.id, 'no charge carries it' FROM quotas.token_usage t
        WHERE NOT EXISTS (SELECT FROM quotas.charge c WHERE c.id = t.charge_id)"""),
    ("L3", """
        SELECT 'charge ' || c.id, c.requests || ' requests of ' || coalesce(c.model, '?') || ' have no price'
        FROM quotas.charge c WHERE c.kind <> 'compute' AND c.tariff_id IS NULL AND c.reverses IS NULL
        AND c.firm_id <> 'firm_platform'
        AND NOT EXISTS (SELECT FROM quotas.token_usage u WHERE u.charge_id = c.id AND u.dedicated)"""),
    ("L3", """
        WITH booked AS (
            SELECT firm_id, sum(amount) AS amount FROM (
                SELECT firm_id, amount FROM quotas.cash_movement UNION ALL SELECT firm_id, -cash FROM quotas.charge) s
            GROUP BY firm_id
        )
        SELECT coalesce(a.code, k.firm_id), 'the ledger says ' || coalesce(a.posted, 0) || ', payments less charges '
            || coalesce(k.amount, 0)
        FROM booked k FULL JOIN (
            SELECT a.code, a.owner, b.credits_posted - b.debits_posted AS posted
            FROM quotas.account a JOIN quotas.balance b ON b.account_id = a.id
            WHERE a.code = 'firm:' || a.owner || ':' || 'cash') a ON a.owner = k.firm_id
        WHERE coalesce(a.posted, 0) <> coalesce(k.amount, 0)"""),
    ("L3", """
        WITH paid AS (
            SELECT v.key AS voucher_id, sum(v.value::bigint) AS amount
            FROM quotas.charge c, jsonb_each_text(c.vouchers) AS v GROUP BY 1
        )
        SELECT 'voucher ' || v.id, 'the ledger redeemed ' || coalesce(r.amount, 0) || ', its charges say '
            || coalesce(p.amount, 0)
        FROM quotas.voucher v LEFT JOIN paid p ON p.voucher_id = v.id LEFT JOIN (
            SELECT a.owner, sum(CASE WHEN t.debit_id = a.id THEN t.amount ELSE -t.amount END) AS amount
            FROM quotas.transfer t
            JOIN quotas.account a ON a.id IN (t.debit_id, t.credit_id) AND a.code LIKE 'voucher:%'
            JOIN quotas.account o ON o.id IN (t.debit_id, t.credit_id) AND o.code LIKE 'programme:%redeemed'
            WHERE t.kind IN ('posted', 'post') GROUP BY a.owner) r ON r.owner = v.id
        WHERE coalesce(p.amount, 0) <> coalesce(r.amount, 0)"""),
)  # fmt: skip


async def check_nouns(tx: AsyncSession) -> list[Finding]:
    """L1 to L3: credit lines, holds, leases and vouchers agree with the ledger; each usage is charged once and paid."""
    return await _answers(tx, (*_NOUNS, *LEASES, *VOUCHERS, *TARIFFS, *PRICES, *STATEMENTS))


async def check_ledger_tables(tx: AsyncSession) -> list[Finding]:
    """L1 and L2 over the whole ledger. Reads every transfer: an audit, not a hot path."""
    return await _answers(tx, _QUESTIONS)


async def _answers(tx: AsyncSession, questions: tuple[tuple[str, str], ...]) -> list[Finding]:
    findings: list[Finding] = []
    for invariant, question in questions:
        rows = await tx.execute(text(question))
        findings += [Finding(invariant, str(about), str(detail)) for about, detail in rows]
    return findings
