"""Examine statements: what was closed is there, and each line says what was used, in the month it came in time for.

That is its own month, or the one whose grace runs when it comes in (`statements.billing_period`).
"""

from quotas.statements import GRACE

_GRACE = f"interval '{GRACE.total_seconds():.0f} seconds'"
_MONTH = "to_char(({0}) AT TIME ZONE 'Asia/Shanghai', 'YYYY-MM')"
_SERVICE = _MONTH.format("greatest(c.first_at, c.last_at - interval '1 millisecond')")
_DUE = f"greatest(c.service_period, {_MONTH.format(f'b.at - {_GRACE}')})"

# (charge, when it was booked): what GPU time was held for names its charge, a record says when it came in.
_BOOKED = """
    SELECT substr(close_reason, length('settled by ') + 1) AS id, closed_at AS at FROM quotas.compute_hold
    WHERE close_reason LIKE 'settled by chg%'
    UNION ALL SELECT charge_id, unnest(ARRAY[min(ingested_at), max(ingested_at)])
    FROM quotas.token_usage GROUP BY charge_id"""

# Each query returns (about, detail) rows, and none when the invariant holds.
STATEMENTS: tuple[tuple[str, str], ...] = (
    ("L3", """
        SELECT 'statement ' || coalesce(e.subject, s.firm_id || ' ' || s.period), CASE
            WHEN e.subject IS NULL THEN 'the audit log knows of no closing'
            WHEN s.hash IS NULL THEN 'it was closed at ' || e.at || ' and is not there'
            ELSE 'it is not the one that was closed at ' || e.at END
        FROM (SELECT subject, at, after ->> 'hash' AS hash FROM quotas.audit_entry WHERE action = 'statement.close') e
        FULL JOIN quotas.statement s ON s.firm_id || ' ' || s.period = e.subject
        WHERE s.hash IS DISTINCT FROM e.hash"""),
    # What was begun within the grace and had to wait for the closing of the month went to the next one.
    ("L3", f"""
        SELECT DISTINCT 'charge ' || c.id, 'it is billed in ' || c.period || ', it came in time for ' || due.period
        FROM quotas.charge c JOIN ({_BOOKED}) b ON b.id = c.id CROSS JOIN LATERAL (SELECT {_DUE} AS period) due
        WHERE c.reverses IS NULL AND c.period <> due.period AND NOT EXISTS (
            SELECT FROM quotas.statement s WHERE s.firm_id = c.firm_id AND s.period = due.period
            AND s.closed_at <= b.at + interval '1 hour')"""),  # noqa: S608 (texts of this file)
    ("L3", f"""
        SELECT 'charge ' || c.id, 'it says ' || c.service_period || ', its GPU time was in ' || {_SERVICE}
        FROM quotas.charge c WHERE c.kind = 'compute' AND c.reverses IS NULL
        AND c.service_period <> {_SERVICE}"""),  # noqa: S608
    ("L3", """
        SELECT 'charge ' || c.id, 'it is not of the work that its money was held for: ' || h.subject
        FROM quotas.compute_hold h JOIN quotas.charge c ON h.close_reason = 'settled by ' || c.id
        WHERE (c.firm_id, c.project_id, c.subject, c.key_id, c.pool, c.centre, c.qos) IS DISTINCT FROM
            (h.firm_id, h.project_id, h.subject, h.key_id, h.pool, split_part(h.pool, '/', 1), h.qos)"""),
    ("L3", f"""
        SELECT 'charge ' || c.id, 'it does not say what its records say: ' || c.line_key
        FROM quotas.charge c JOIN (
            SELECT charge_id, min(at) AS first_at, max(at) AS last_at FROM quotas.token_usage GROUP BY charge_id
        ) u ON u.charge_id = c.id
        WHERE (c.first_at, c.last_at, c.subject)
            IS DISTINCT FROM (u.first_at, u.last_at, concat_ws(' ', c.key_id, c.model))
        OR c.service_period <> {_MONTH.format("u.first_at")} OR c.service_period <> {_MONTH.format("u.last_at")}
        OR substring(c.line_key FROM '\\|(\\d{{4}}-\\d\\d\\|\\d{{4}}-\\d\\d)(\\|[^|]*)?$')
            IS DISTINCT FROM c.service_period || '|' || c.period"""),  # noqa: S608
    ("L3", f"""
        SELECT 'charge ' || c.id, 'it gives ' || r.id || ' back, and does not say what that says'
        FROM quotas.charge c JOIN quotas.charge r ON r.id = c.reverses
        JOIN quotas.operation o ON o.scope = 'refund' AND o.key = r.id
        WHERE (c.firm_id, c.project_id, c.kind, c.subject, c.service_period, c.tariff_id, c.key_id, c.model, c.pool,
            c.qos, c.period) IS DISTINCT FROM (r.firm_id, r.project_id, r.kind, r.subject, r.service_period,
            r.tariff_id, r.key_id, r.model, r.pool, r.qos, {_MONTH.format("o.at")})"""),  # noqa: S608
    ("L3", f"""
        SELECT 'payment ' || m.id, 'it is of ' || m.at || ' in ' || m.period || ', the ledger moved it at ' || o.at
        FROM quotas.cash_movement m LEFT JOIN quotas.operation o ON o.id = m.operation_id
        WHERE (m.at, m.period) IS DISTINCT FROM (o.at, {_MONTH.format("o.at")})"""),  # noqa: S608
)  # fmt: skip
