"""Examine what was promised: holds, leases, rate windows and vouchers agree with the ledger, row by row."""

# Each query returns (about, detail) rows, and none when the invariant holds.
LEASES: tuple[tuple[str, str], ...] = (
    ("L2", """
        SELECT l.id, CASE WHEN a.owner <> coalesce(l.voucher_id, l.firm_id) THEN 'it holds money of ' || a.code
            WHEN v.firm_id <> l.firm_id THEN 'it holds ' || v.id || ' of ' || v.firm_id
            WHEN v.expires_at < l.expires_at THEN 'it ends ' || l.expires_at || ', ' || v.id || ' at ' || v.expires_at
            ELSE 'it ends ' || l.expires_at || ', its money is held until ' || p.expires_at END
        FROM quotas.allowance_part l JOIN quotas.pending p ON p.id = l.pending_id
        JOIN quotas.account a ON a.id = p.debit_id LEFT JOIN quotas.voucher v ON v.id = l.voucher_id
        WHERE l.state = 'open' AND (p.expires_at <> l.expires_at OR a.owner <> coalesce(l.voucher_id, l.firm_id)
            OR v.firm_id <> l.firm_id OR v.expires_at < l.expires_at)"""),
    ("L2", """
        SELECT h.id, CASE WHEN p.amount_left <> named.amount
                THEN 'it says ' || named.amount || ' is held, the ledger ' || p.amount_left
            WHEN p.expires_at <> h.expires_at THEN 'it ends ' || h.expires_at || ', its money at ' || p.expires_at
            ELSE 'it is of ' || h.firm_id || ' and holds money of ' || a.code END
        FROM quotas.compute_hold h, LATERAL (
            SELECT h.cash_pending_id AS pending_id, h.cash AS amount, CASE h.firm_id WHEN 'firm_platform'
                THEN 'platform:' || 'cost:' || 'own-workloads' ELSE 'firm:' || h.firm_id || ':' || 'cash' END AS payer
            UNION ALL SELECT (part ->> 'pending_id')::bigint, (part ->> 'amount')::bigint, 'voucher:' || v.id
            FROM jsonb_array_elements(h.parts) AS part
            LEFT JOIN quotas.voucher v ON v.id = part ->> 'voucher_id' AND v.firm_id = h.firm_id) named
        JOIN quotas.pending p ON p.id = named.pending_id JOIN quotas.account a ON a.id = p.debit_id
        WHERE h.state = 'open' AND (p.amount_left <> named.amount OR p.expires_at <> h.expires_at
            OR a.code IS DISTINCT FROM named.payer)"""),
    ("G2", """
        SELECT w.subject || ' in minute ' || w.minute, CASE
            WHEN w.requests_leased > w.requests_limit OR w.tokens_leased > w.tokens_limit THEN 'leased above its limit'
            ELSE 'its leases are not what it says was leased' END
        FROM quotas.rate_window w LEFT JOIN (
            SELECT minute, subject, sum(requests) AS requests, sum(tokens) AS tokens
            FROM quotas.rate_lease GROUP BY minute, subject) l ON (l.minute, l.subject) = (w.minute, w.subject)
        WHERE (w.requests_leased, w.tokens_leased) IS DISTINCT FROM (coalesce(l.requests, 0), coalesce(l.tokens, 0))
            OR w.requests_leased > w.requests_limit OR w.tokens_leased > w.tokens_limit"""),
)  # fmt: skip

VOUCHERS: tuple[tuple[str, str], ...] = (
    ("L3", """
        SELECT a.code, 'nothing of that name was granted or opened' FROM quotas.account a
        WHERE a.code LIKE 'voucher:%' AND NOT EXISTS (SELECT FROM quotas.voucher v WHERE 'voucher:' || v.id = a.code)
        OR a.code LIKE 'programme:%' AND NOT EXISTS (SELECT FROM quotas.programme g WHERE g.id = a.owner)"""),
    ("L3", """
        SELECT v.id, 'granted ' || v.amount || ', the ledger moved ' || coalesce(sum(t.amount), 0)
            || ' from its programme''s pool'
        FROM quotas.voucher v LEFT JOIN quotas.operation o ON o.scope = 'voucher' AND o.key = v.id
        LEFT JOIN quotas.transfer t ON t.operation_id = o.id
            AND t.debit_id = (SELECT id FROM quotas.account WHERE owner = v.programme_id AND code LIKE '%pool')
            AND t.credit_id = (SELECT id FROM quotas.account WHERE code = 'voucher:' || v.id)
        GROUP BY v.id HAVING coalesce(sum(t.amount), 0) <> v.amount"""),
    ("L3", """
        SELECT g.id, 'its pool was to be ' || g.pool || ', the ledger issued ' || coalesce(sum(t.amount), 0)
        FROM quotas.programme g LEFT JOIN quotas.operation o ON o.scope = 'programme' AND o.key = g.id
        LEFT JOIN quotas.transfer t ON t.operation_id = o.id
        GROUP BY g.id HAVING coalesce(sum(t.amount), 0) <> g.pool"""),
    ("L3", """
        SELECT v.id, 'granted or valid outside the time of its programme'
        FROM quotas.voucher v JOIN quotas.programme g ON g.id = v.programme_id
        WHERE NOT g.validity @> v.granted_at OR v.expires_at > upper(g.validity)"""),
    ("L3", """
        SELECT v.firm_id || ' under ' || g.id, sum(v.amount) || ' granted in a year is above the cap of '
            || g.cap_per_firm_year
        FROM quotas.voucher v JOIN quotas.programme g ON g.id = v.programme_id
        GROUP BY v.firm_id, g.id, date_trunc('year', v.granted_at AT TIME ZONE 'Asia/Shanghai')
        HAVING sum(v.amount) > g.cap_per_firm_year"""),
    # What a funder owes is what its vouchers paid.
    ("L3", """
        WITH moved AS (
            SELECT a.owner, a.code LIKE '%redeemed' AS redeemed,
                sum(CASE WHEN t.credit_id = a.id THEN t.amount ELSE -t.amount END) AS amount
            FROM quotas.account a JOIN quotas.transfer t ON a.id IN (t.debit_id, t.credit_id)
            WHERE t.kind IN ('posted', 'post') AND a.code LIKE 'programme:%'
                AND (a.code LIKE '%redeemed' OR a.code LIKE '%receivable')
            GROUP BY a.owner, a.code LIKE '%redeemed'
        )
        SELECT owner, 'its vouchers paid ' || coalesce(sum(amount) FILTER (WHERE redeemed), 0) || ', the funder owes '
            || coalesce(-sum(amount) FILTER (WHERE NOT redeemed), 0)
        FROM moved GROUP BY owner HAVING sum(amount) <> 0"""),
    ("L3", """
        SELECT 'charge ' || c.id, 'vouchers paid ' || c.voucher || ', by name ' || coalesce(sum(v.value::bigint), 0)
        FROM quotas.charge c LEFT JOIN jsonb_each_text(c.vouchers) AS v ON true
        GROUP BY c.id HAVING coalesce(sum(v.value::bigint), 0) <> c.voucher"""),
)  # fmt: skip

TARIFFS: tuple[tuple[str, str], ...] = (
    ("L3", """
        SELECT 'usage ' || u.source || ' ' || u.id, 'tariff ' || t.id || ' was not in force at ' || u.at
        FROM quotas.token_usage u JOIN quotas.charge c ON c.id = u.charge_id JOIN quotas.tariff t ON t.id = c.tariff_id
        WHERE NOT t.validity @> u.at"""),
    ("L3", """
        SELECT 'charge ' || c.id, 'tariff ' || t.id || ' was not in force at ' || c.first_at
        FROM quotas.charge c JOIN quotas.tariff t ON t.id = c.tariff_id
        WHERE c.kind = 'compute' AND c.reverses IS NULL AND NOT t.validity @> c.first_at"""),
)  # fmt: skip
