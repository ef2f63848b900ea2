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
            ELSE exact * scale <> (list_amount - discount)::numeric * per * scale + residue END"""),  # noqa: S608
    ("L3", f"""
        WITH booked AS (
            SELECT 'centre:' || centre || '\\:payable' AS code, sum(payable) AS amount FROM quotas.charge
            WHERE centre IS NOT NULL GROUP BY centre
            UNION ALL SELECT 'platform:loss', -sum(loss) FROM quotas.charge
            UNION ALL SELECT 'platform:revenue:' || kind, sum(amount + loss) FROM quotas.charge GROUP BY kind
            UNION ALL SELECT 'firm:' || firm_id || '\\:gpu\\:' || pool, -sum(gpu_ms) FROM quotas.charge
            WHERE pool IS NOT NULL GROUP BY firm_id, pool
        ), posted AS ({_POSTED})
        SELECT coalesce(p.code, b.code), 'the ledger says ' || coalesce(p.amount, 0) || ', its charges '
            || coalesce(b.amount, 0)
        FROM posted p FULL JOIN booked b ON b.code = p.code
        WHERE (b.code IS NOT NULL OR p.code LIKE 'centre:%\\:payable' OR p.code LIKE 'platform:revenue:%'
            OR p.code LIKE 'firm:%\\:gpu\\:%' OR p.code = 'platform:loss')
        AND coalesce(p.amount, 0) <> coalesce(b.amount, 0)"""),  # noqa: S608
)  # fmt: skip
