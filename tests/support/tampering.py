"""Ways in which somebody with the database in their hands may tamper with the books, and what has to find each."""

NO_CHECKS = "ALTER TABLE quotas.{0} DROP CONSTRAINT {1};"

# what was done, which invariant finds it, in which words
TAMPERED: dict[str, tuple[str, str, str]] = {
    "a transfer's amount": ("UPDATE quotas.transfer SET amount = amount + 1 WHERE id = 1", "L1", "a replay"),
    "a sealed transfer": (
        "UPDATE quotas.transfer SET at = at + interval '1 second' WHERE id = 1", "chain", "not those that were sealed",
    ),
    "a transfer's account": (
        "UPDATE quotas.transfer SET credit_id = (SELECT id FROM quotas.account WHERE asset LIKE 'GPU_MS%' LIMIT 1) "
        "WHERE id = 1", "L1", "it joins CNY and GPU_MS",
    ),
    "a transfer's account, to one that is not there": (
        "UPDATE quotas.transfer SET credit_id = 999 WHERE id = 1", "L1", "it joins CNY and nothing",
    ),
    "a transfer is gone": ("DELETE FROM quotas.transfer WHERE id = 1", "L1", "names 1 transfers and has 0"),
    "a transfer is added": (
        "INSERT INTO quotas.transfer (operation_id, kind, debit_id, credit_id, amount, final, at) "
        "SELECT operation_id, 'posted', debit_id, credit_id, amount, false, at FROM quotas.transfer WHERE id = 1",
        "L1", "names 1 transfers and has 2",
    ),
    "a firm's money": (
        "UPDATE quotas.balance b SET credits_posted = credits_posted + 1 FROM quotas.account a "
        "WHERE a.id = b.account_id AND a.code LIKE 'firm:%cash'", "L1", "the cache says",
    ),
    "revenue that was folded": (
        "UPDATE quotas.balance b SET credits_posted = credits_posted + 1 FROM quotas.account a "
        "WHERE a.id = b.account_id AND a.code LIKE 'platform:revenue%'", "L1", "the cache says",
    ),
    "what is on hold": (
        "UPDATE quotas.balance SET debits_pending = debits_pending + 1 WHERE debits_pending > 0", "L1",
        "the open holds say",
    ),
    "a balance below its floor": (
        NO_CHECKS.format("balance", "balance_above_floor")
        + "UPDATE quotas.balance b SET debits_posted = credits_posted + 1 FROM quotas.account a "
        "WHERE a.id = b.account_id AND a.code LIKE 'firm:%cash'", "L1", "below its floor",
    ),
    "a credit line that nobody granted": (
        "UPDATE quotas.balance b SET floor = -1000000 FROM quotas.account a "
        "WHERE a.id = b.account_id AND a.code LIKE 'firm:%cash'", "L1", "down to -1000000, the audit log says 0",
    ),
    "an account that is not bounded any more": (
        "UPDATE quotas.account SET bounded = false WHERE code LIKE 'firm:%cash'", "L1", "down to 0, the audit log says",
    ),
    "an account without a floor": (
        "UPDATE quotas.balance b SET floor = NULL FROM quotas.account a "
        "WHERE a.id = b.account_id AND a.code LIKE 'firm:%cash'", "L1", "down to any depth",
    ),
    "an account under another name": (
        "UPDATE quotas.account SET code = code || 'x' WHERE code LIKE 'firm:%cash'", "L3",
        "the ledger says 0, payments less",
    ),
    "an operation of another day": (
        "UPDATE quotas.operation SET at = at - interval '1 day'", "L1", "of another time",
    ),
    "a hold of another firm": (
        "UPDATE quotas.compute_hold SET firm_id = 'firm_platform' WHERE state = 'open'", "L2",
        "it is of firm_platform and holds money of firm:",
    ),
    "a hold that lasts longer than its money": (
        "UPDATE quotas.compute_hold SET expires_at = expires_at + interval '1 year' WHERE state = 'open'", "L2",
        "its money at",
    ),
    "a voucher is gone": ("DELETE FROM quotas.voucher", "L3", "nothing of that name was granted"),
    "GPU usage that took longer": (
        "UPDATE quotas.compute_usage SET gpu_ms = gpu_ms + 1", "L3", "60000 GPU-ms from",
    ),
    "a closed month is gone": (
        "DELETE FROM quotas.statement WHERE period = '2026-09'", "L3", "there is none, and a later month is closed",
    ),
    "the last closed month is gone": (
        "DELETE FROM quotas.statement WHERE period = '2026-10'", "L3", "and is not there",
    ),
    "every closed month is gone": ("DELETE FROM quotas.statement", "L3", "and is not there"),
    "a month that was closed otherwise": (
        "UPDATE quotas.statement SET hash = 'x' WHERE period = '2026-10'", "L3", "it is not the one that was closed at",
    ),
    "a month that nobody closed": (
        "INSERT INTO quotas.statement SELECT firm_id, '2026-08', hash, body, closed_at FROM quotas.statement "
        "WHERE period = '2026-09'", "L3", "the audit log knows of no closing",
    ),
    "usage of an open month, moved to a later one": (
        "UPDATE quotas.charge SET period = '2026-12', line_key = replace(line_key, '2026-11|2026-11', "
        "'2026-11|2026-12') WHERE kind = 'tokens' AND period = '2026-11'", "L3", "it came in time for 2026-11",
    ),
    "GPU time of an open month, moved to a later one": (
        "UPDATE quotas.charge SET period = '2026-12' WHERE kind = 'compute'", "L3", "it came in time for 2026-11",
    ),
    "a payment, moved to another month": (
        "UPDATE quotas.cash_movement SET period = '2026-08'", "L3", "the ledger moved it at",
    ),
    "the month in which GPU time was used": (
        "UPDATE quotas.charge SET service_period = '2026-10' WHERE kind = 'compute'", "L3",
        "its GPU time was in 2026-11",
    ),
    "the month in which tokens were used": (
        "UPDATE quotas.charge SET service_period = '2026-10' WHERE kind = 'tokens' AND period = '2026-11'", "L3",
        "it does not say what its records say",
    ),
    "the job of a charge": (
        "UPDATE quotas.charge SET subject = 'job_9' WHERE kind = 'compute'", "L3",
        "it is not of the work that its money was held for: job_1",
    ),
    "the project of a charge": (
        "UPDATE quotas.charge SET project_id = 'prj_9' WHERE kind = 'compute'", "L3", "its money was held for",
    ),
    "the key that a line names": (
        "UPDATE quotas.charge SET subject = 'key_9 ' || model WHERE kind = 'tokens' AND period = '2026-11'", "L3",
        "it does not say what its records say",
    ),
    "when a line's first record was": (
        "UPDATE quotas.charge SET first_at = first_at - interval '1 second' WHERE kind = 'tokens' "
        "AND period = '2026-11'", "L3", "it does not say what its records say",
    ),
    "a credit note of another job": (
        "UPDATE quotas.charge SET subject = 'job_9' WHERE reverses IS NOT NULL", "L3", "does not say what that says",
    ),
    "a credit note, moved to a later month": (
        "UPDATE quotas.charge SET period = '2026-12' WHERE reverses IS NOT NULL", "L3", "does not say what that says",
    ),
    "an open hold is gone": ("DELETE FROM quotas.pending", "L2", "neither open nor resolved"),
    "an open hold holds more": ("UPDATE quotas.pending SET amount_left = amount_left + 1", "L2", "left of"),
    "a hold was resolved twice": (
        "DROP INDEX quotas.transfer_resolves_once;"
        "INSERT INTO quotas.transfer (operation_id, kind, debit_id, credit_id, amount, pending_id, final, at) "
        "SELECT operation_id, 'void', debit_id, credit_id, amount, pending_id, true, at FROM quotas.transfer "
        "WHERE final LIMIT 1", "L2", "resolved 2 times",
    ),
    "a resolved hold is open again": (
        "INSERT INTO quotas.pending (id, debit_id, credit_id, amount_left, expires_at) "
        "SELECT pending_id, debit_id, credit_id, amount, at FROM quotas.transfer WHERE final LIMIT 1", "L2",
        "resolved and still open",
    ),
    "more was taken than held": (
        "UPDATE quotas.transfer SET amount = amount + 900000 WHERE kind = 'post'", "L2", " taken of ",
    ),
    "a hold that was never made was resolved": (
        "UPDATE quotas.transfer SET pending_id = 1 "
        "WHERE id = (SELECT max(id) FROM quotas.transfer WHERE kind = 'post' AND final)", "L2", "never held",
    ),
    "work that is over holds money": (
        "UPDATE quotas.compute_hold SET state = 'released', closed_at = now() WHERE state = 'open'", "L2",
        "money is still held",
    ),
    "a hold says it holds less": (
        "UPDATE quotas.compute_hold SET cash = cash - 1 WHERE state = 'open'", "L2", "is held, the ledger",
    ),
    "a lease that is over holds money": (
        "UPDATE quotas.allowance_lease SET state = 'returned', closed_at = now()", "L2", "money is still held",
    ),
    "a lease is gone": ("DELETE FROM quotas.allowance_lease", "L2", "no hold and no lease names it"),
    "a lease lasts longer than its money": (
        "UPDATE quotas.allowance_lease SET expires_at = expires_at + interval '1 hour'", "L2", "is held until",
    ),
    "a lease of somebody else's money": (
        "UPDATE quotas.allowance_lease SET firm_id = 'firm_platform'", "L2", "it holds money of firm:",
    ),
    "a lease that lasts longer than its voucher": (
        "UPDATE quotas.voucher SET expires_at = granted_at + interval '1 second' "
        "WHERE id IN (SELECT voucher_id FROM quotas.allowance_part)", "L2",
        "it ends",
    ),
    "a lease of somebody else's voucher": (
        "UPDATE quotas.voucher SET firm_id = 'firm_platform' "
        "WHERE id IN (SELECT voucher_id FROM quotas.allowance_part)", "L2", "of firm_platform",
    ),
    "a lease that forgot its voucher": (
        "UPDATE quotas.allowance_lease SET vouchers = '{}'", "L2", "no hold and no lease names it",
    ),
    "a lease that names its voucher's money as another's": (
        "UPDATE quotas.allowance_lease SET vouchers = jsonb_build_object('vch_other', "
        "(SELECT value FROM jsonb_each(vouchers)))", "L2", "it holds money of voucher:",
    ),
    "a minute that was leased above its limit": (
        NO_CHECKS.format("rate_window", "rate_window_not_oversold")
        + "UPDATE quotas.rate_window SET requests_leased = 99; UPDATE quotas.rate_lease SET requests = 99", "G2",
        "above its limit",
    ),
    "a minute's lease that nobody counted": (
        "UPDATE quotas.rate_lease SET requests = requests + 1", "G2", "not what it says was leased",
    ),
    "a line counts too much": (
        "UPDATE quotas.charge SET input = input + 1 WHERE kind = 'tokens'", "L3", "its records count",
    ),
    "a usage record is gone": ("DELETE FROM quotas.token_usage WHERE id = 'req_1'", "L3", "its records count"),
    "a usage record without a line": (
        "UPDATE quotas.token_usage SET charge_id = 'chg_none'", "L3", "no charge carries it",
    ),
    "a charge without usage": ("DELETE FROM quotas.compute_usage", "L3", "no usage stands behind it"),
    "usage under a tariff that was not in force": (
        "UPDATE quotas.token_usage SET at = at - interval '90 days'", "L3", "was not in force",
    ),
    "GPU time under a tariff that was not in force": (
        "UPDATE quotas.charge SET first_at = first_at - interval '90 days' WHERE kind = 'compute'", "L3",
        "was not in force",
    ),
    "a charge the firm did not pay": (
        "UPDATE quotas.charge SET cash = cash + 1, amount = amount + 1 WHERE kind = 'tokens'", "L3",
        "payments less charges",
    ),
    "a payment nobody made": ("UPDATE quotas.cash_movement SET amount = amount + 1", "L3", "payments less charges"),
    "a voucher that paid more than it says": (
        "UPDATE quotas.charge SET vouchers = (SELECT jsonb_object_agg(key, value::bigint + 1) "
        "FROM jsonb_each_text(vouchers)) WHERE voucher > 0", "L3", "the ledger redeemed",
    ),
    "vouchers that do not add up": (
        "UPDATE quotas.charge SET voucher = voucher + 1, cash = cash - 1 WHERE voucher > 0", "L3", "by name",
    ),
    "a voucher's amount": ("UPDATE quotas.voucher SET amount = amount + 1", "L3", "pool"),
    "a programme's pool": ("UPDATE quotas.programme SET pool = pool + 1", "L3", "the ledger issued"),
    "a firm above a programme's cap": ("UPDATE quotas.programme SET cap_per_firm_year = 1", "L3", "above the cap"),
    "a voucher granted before its programme": (
        "UPDATE quotas.voucher SET granted_at = granted_at - interval '300 days'", "L3", "outside the time",
    ),
    "what a funder owes": (
        "UPDATE quotas.transfer t SET amount = amount + 1 FROM quotas.account a "
        "WHERE a.id = t.debit_id AND a.code LIKE '%receivable'", "L3", "the funder owes",
    ),
    "a line's rates": (
        "UPDATE quotas.charge SET rates = jsonb_set(rates, '{output}', '2100000') WHERE kind = 'tokens'", "L3",
        "its list price",
    ),
    "a line's list price and discount": (
        "UPDATE quotas.charge SET list_amount = list_amount + 1, discount = discount + 1 WHERE kind = 'tokens'", "L3",
        "its list price",
    ),
    "what rounding left": (
        "UPDATE quotas.charge SET residue = residue + 1 WHERE kind = 'tokens'", "L3", "is not its counts at its rates",
    ),
    "what a centre is owed": (
        "UPDATE quotas.charge SET payable = payable + 1 WHERE kind = 'compute'", "L3", "centre:optics-valley:payable",
    ),
    "what nobody paid": ("UPDATE quotas.charge SET loss = loss + 1 WHERE kind = 'tokens'", "L3", "platform:loss"),
    "what the platform earned": (
        "UPDATE quotas.charge SET kind = 'images' WHERE kind = 'tokens'", "L3", "platform:revenue:tokens",
    ),
    "GPU time": (
        "UPDATE quotas.charge SET gpu_ms = gpu_ms + 1 WHERE kind = 'compute'", "L3", ":gpu:optics-valley/cpu-slot",
    ),
    "usage that lost its price, and a note that excuses it": (
        "UPDATE quotas.charge SET tariff_id = NULL, note = 'a gift' WHERE kind = 'tokens'", "L3", "have no price",
    ),
    "rounding that nobody booked": (
        "UPDATE quotas.charge SET residue = residue + 1 WHERE kind = 'tokens'", "L3", "firms:residue",
    ),
    "a line's rates, which are not those of its tariff": (
        "UPDATE quotas.rate SET micro_yuan = micro_yuan + 1 WHERE meter = 'cached_input'", "L3",
        "its tariff says {'input': 1000000, 'cached_input': 250001",
    ),
    "rates of a contract that does not exist": (
        "UPDATE quotas.charge SET contract_rates = rates WHERE kind = 'tokens'", "L3", "its contract says {}",
    ),
    "a tariff whose price a line never had": (
        "DELETE FROM quotas.rate WHERE meter = 'output'", "L3",
        "its tariff says {'input': 0, 'cached_input': 0, 'output': 0}",
    ),
    "GPU time's rates": (
        "UPDATE quotas.rate SET micro_yuan = micro_yuan + 1 WHERE qos = 'standard'", "L3",
        "its time at its tariff says {'trf_",
    ),
    "GPU time without a price": ("DELETE FROM quotas.rate WHERE qos = 'standard'", "L3", "There is no price for pool"),
    "GPU time's list price and discount": (
        "UPDATE quotas.charge SET list_amount = list_amount + 1, discount = discount + 1 WHERE kind = 'compute'", "L3",
        "its list amount: 60001; its time at its tariff says 60000",
    ),
    "GPU time's residue": (
        "UPDATE quotas.charge SET residue = residue + 1 WHERE kind = 'compute'", "L3", "its residue: 1;",
    ),
    "a centre's part": (
        "UPDATE quotas.charge SET payout_ppm = 900000 WHERE kind = 'compute'", "L3",
        "its payout ppm: 900000; its time at its tariff says 800000",
    ),
    "a contract of a centre that was not in force": (
        "INSERT INTO quotas.centre_contract (id, centre, payout_ppm, validity) SELECT 'ctr_1', centre, 700000, "
        "tstzrange(first_at, NULL) FROM quotas.charge WHERE kind = 'compute'", "L3",
        "its payable: 48000; its time at its tariff says 42000",
    ),
    "a usage record on the line of another key": (
        "UPDATE quotas.token_usage SET key_id = 'key_2' WHERE id = 'req_1'", "L3", "it is on the line tokens:",
    ),
    "usage of a window at the price of the rest of the day": (
        "UPDATE quotas.tariff SET windows = "
        "'[{\"name\": \"valley\", \"start_minute\": 0, \"end_minute\": 1440}]'", "L3",
        "it is on the line tokens:",
    ),
    "usage without the discount that was in force": (
        "INSERT INTO quotas.discount (id, firm_id, kind, resource, off_ppm, validity, contract, granted_by, granted_at)"
        " SELECT 'dsc_1', firm_id, kind, '*', 100000, tstzrange(first_at, NULL), 'c', 'x', first_at FROM quotas.charge"
        " WHERE kind = 'tokens' AND period = '2026-11' AND reverses IS NULL", "L3", "no discount, in force was dsc_1",
    ),
    "a month that does not begin where the last one ended": (
        "UPDATE quotas.statement SET body = jsonb_set(body, '{opening}', '1') WHERE period = '2026-10'", "L3",
        "it opens with 1; 2026-09 closed with 10000000",
    ),
    "a closed statement that is no statement": (
        "UPDATE quotas.statement SET body = body - 'lines'", "L3", "cannot be read: KeyError('lines')",
    ),
    "a closed statement": (
        "UPDATE quotas.statement SET body = jsonb_set(body, '{cash}', '1')", "L3", "is not what was sealed",
    ),
    "a closed statement and its hash, whose charges say otherwise": (
        "UPDATE quotas.charge SET note = 'x' WHERE period = '2026-10'", "L3", "its charges say otherwise",
    ),
    "a block's hash": (
        "UPDATE quotas.block SET hash = sha256('x') WHERE number = 1", "chain", "is not the one written",
    ),
    "a block is gone": ("DELETE FROM quotas.block WHERE number = 1", "chain", "does not follow the block before it"),
    "every block is gone": ("DELETE FROM quotas.block", "chain", "and not in the ledger"),
    "a chain that was written anew": (
        "UPDATE quotas.transfer SET at = at + interval '1 second' "
        "WHERE xid >= (SELECT max(from_xid) FROM quotas.block);"
        "UPDATE quotas.block SET "
        "hash = sha256(previous || convert_to(quotas.chain_lines(from_xid, until_xid), 'UTF8')) "
        "WHERE number = (SELECT max(number) FROM quotas.block)", "chain", "is not the one written",
    ),
}  # fmt: skip
