"""Examine what was charged: every line costs its counts at its rates, and the books carry the sums of the lines."""

from quotas.pricing import BYTE_HOURS_PER_GB_MONTH, MS_PER_SECOND, RESIDUE_UNIT, TOKENS_PER_RATE

# Each query returns (about, detail) rows, and none when the invariant holds. Exact: nothing is rounded here.
_EXACT = f"""
    SELECT c.*, CASE WHEN c.kind = 'tokens' THEN
            (c.input - c.cached_input)::numeric * coalesce((p.rates ->> 'input')::bigint, 0)
            + c.cached_input::numeric * coalesce((p.rates ->> 'cached_input')::bigint, 0)
            + c.output::numeric * coalesce((p.rates ->> 'output')::bigint, 0)
        ELSE c.quantity::numeric * coalesce((p.rates ->> 'unit')::bigint, 0) END AS exact,
        u.per, CASE c.kind WHEN 'storage' THEN 1 ELSE {RESIDUE_UNIT} / u.per END AS scale, p.listed
    FROM quotas.charge c
    JOIN (VALUES ('tokens', {TOKENS_PER_RATE}), ('images', 1), ('audio', {MS_PER_SECOND}),
        ('storage', {BYTE_HOURS_PER_GB_MONTH})) AS u (kind, per) ON u.kind = c.kind
    CROSS JOIN LATERAL (VALUES (c.rates, true), (CASE WHEN c.discount_id IS NULL THEN c.rates ELSE c.contract_rates END,
        false)) AS p (rates, listed)
    WHERE c.reverses IS NULL"""  # noqa: S608 (numbers of this package)

_POSTED = """
    SELECT a.code, coalesce(sum(m.amount), 0) AS amount FROM quotas.account a LEFT JOIN (
        SELECT credit_id AS id, amount FROM quotas.transfer WHERE kind IN ('posted', 'post')
        UNION ALL SELECT debit_id, -amount FROM quotas.transfer WHERE kind IN ('posted', 'post')) m ON m.id = a.id
    GROUP BY a.code"""

PRICES: tuple[tuple[str, str], ...] = (
    ("L3", f"""
        SELECT 'charge ' || id, CASE WHEN listed THEN 'its list price ' || list_amount
            ELSE 'its price ' || (list_amount - discount) || ' with residue ' || residue END
            || ' is not its counts at its rates'
        FROM ({_EXACT}) e
        WHERE CASE WHEN listed THEN 2 * abs(exact - list_amount::numeric * per) > per
                OR 2 * abs(exact - list_amount::numeric * per) = per AND list_amount % 2 = 1
            ELSE exact * scale <> (list_amount - discount)::numeric * per * scale + residue END"""),  # noqa: S608
    ("L3", f"""
        WITH booked AS (
            SELECT 'centre:' || centre || '\\:payable' AS code, sum(payable) AS amount FROM quotas.charge
            WHERE centre IS NOT NULL GROUP BY centre
            UNION ALL SELECT 'platform:loss', -sum(loss) FROM quotas.charge
            UNION ALL SELECT 'platform:revenue:' || kind, sum(amount + loss) FROM quotas.charge GROUP BY kind
            UNION ALL SELECT 'firm:' || firm_id || '\\:gpu\\:' || pool, -sum(gpu_ms) FROM quotas.charge
            WHERE pool IS NOT NULL GROUP BY firm_id, pool
            UNION ALL SELECT r.code, r.sign * sum(residue) FROM quotas.charge c
            JOIN (VALUES ('firms:residue', 1, false), ('platform:residue', -1, false),
                ('firms:residue:storage', 1, true), ('platform:residue:storage', -1, true)) AS r (code, sign, storage)
                ON r.storage = (c.kind = 'storage')
            WHERE c.firm_id <> 'firm_platform' GROUP BY r.code, r.sign
        ), posted AS ({_POSTED})
        SELECT coalesce(p.code, b.code), 'the ledger says ' || coalesce(p.amount, 0) || ', its charges '
            || coalesce(b.amount, 0)
        FROM posted p FULL JOIN booked b ON b.code = p.code
        WHERE (b.code IS NOT NULL OR p.code LIKE 'centre:%\\:payable' OR p.code LIKE 'platform:revenue:%'
            OR p.code LIKE 'firm:%\\:gpu\\:%' OR p.code LIKE 'firms:residue%' OR p.code LIKE 'platform:residue%'
            OR p.code = 'platform:loss')
        AND coalesce(p.amount, 0) <> coalesce(b.amount, 0)"""),  # noqa: S608
    # A record is on the line of who used what, at the hour's price; the window of a line is in its key.
    ("L3", r"""
        SELECT 'usage ' || u.source || ' ' || u.id, 'it is on the line ' || c.line_key
        FROM quotas.token_usage u JOIN quotas.charge c ON c.id = u.charge_id
        LEFT JOIN quotas.tariff t ON t.id = c.tariff_id AND t.windows <> '[]'
        WHERE (u.firm_id, u.project_id, u.key_id, u.model, u.kind)
            IS DISTINCT FROM (c.firm_id, c.project_id, coalesce(c.key_id, ''), c.model, c.kind)
        OR t.id IS NOT NULL AND substring(c.line_key FROM '\|([^|]*)\|\d{4}-\d\d\|\d{4}-\d\d(\|[^|]*)?$')
            IS DISTINCT FROM coalesce((
                SELECT w.name FROM jsonb_to_recordset(t.windows) AS w (name text, start_minute int, end_minute int),
                    LATERAL (SELECT (floor(extract(epoch FROM u.at) / 60)::bigint + 480) % 1440 AS minute) m
                WHERE CASE WHEN w.start_minute < w.end_minute
                    THEN w.start_minute <= m.minute AND m.minute < w.end_minute
                    ELSE w.start_minute <= m.minute OR m.minute < w.end_minute END LIMIT 1), '')"""),
    # Of a firm with a contract, each record is on the line of the discount that was in force, a named resource first.
    ("L3", """
        SELECT 'usage ' || u.source || ' ' || u.id, 'it is charged under ' || coalesce(c.discount_id, 'no discount')
            || ', in force was ' || coalesce(d.id, 'none')
        FROM quotas.charge c JOIN quotas.token_usage u ON u.charge_id = c.id
        LEFT JOIN LATERAL (
            SELECT o.id FROM quotas.discount o WHERE o.firm_id = c.firm_id AND o.kind = c.kind
                AND o.resource IN (u.base_model, '*') AND o.validity @> u.at
            ORDER BY o.resource = '*' LIMIT 1) d ON true
        WHERE c.tariff_id IS NOT NULL AND c.reverses IS NULL AND c.discount_id IS DISTINCT FROM d.id
        AND (c.discount_id IS NOT NULL OR EXISTS (
            SELECT FROM quotas.discount a WHERE a.firm_id = c.firm_id AND a.kind = c.kind))"""),
)  # fmt: skip
