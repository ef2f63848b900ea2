"""What the platform answers about prices, vouchers, accounts, statements and the ledger. Amounts: micro-yuan."""

from datetime import datetime

from heliu.client.people_views import View


class Rate(View):
    meter: str
    resource: str
    qos: str
    window: str
    micro_yuan: int


class Tariff(View):
    id: str
    name: str
    valid_from: datetime
    valid_until: datetime | None
    rates: list[Rate]


class PreviewLine(View):
    firm_id: str
    kind: str
    now_micro_yuan: int
    draft_micro_yuan: int


class Preview(View):
    """`now`: as the month was priced; `unpriced`: what the draft has no price for."""

    period: str
    lines: list[PreviewLine]
    now_micro_yuan: int
    draft_micro_yuan: int
    unpriced: list[str]


class Discount(View):
    id: str
    firm_id: str
    kind: str
    resource: str
    off_ppm: int
    valid_from: datetime
    valid_until: datetime | None
    contract: str
    granted_by: str
    granted_at: datetime


class UsageImport(View):
    """`skipped`: lines with nothing to charge, by why. `loss`: what neither vouchers nor cash could pay."""

    dry_run: bool
    imported: int
    duplicates: int
    skipped: dict[str, int]
    amount_micro_yuan: int
    voucher_micro_yuan: int
    cash_micro_yuan: int
    loss_micro_yuan: int


class Programme(View):
    id: str
    name: str
    funder: str
    share_ppm: int
    pool_micro_yuan: int
    left_micro_yuan: int
    cap_per_firm_year_micro_yuan: int
    valid_from: datetime
    valid_until: datetime


class Voucher(View):
    id: str
    programme_id: str
    firm_id: str
    amount_micro_yuan: int
    left_micro_yuan: int
    share_ppm: int
    expires_at: datetime


class Account(View):
    firm_id: str
    balance_micro_yuan: int
    held_micro_yuan: int
    available_micro_yuan: int


class StatementLine(View):
    """`about` names what `subject` is: the job, or the key and the model."""

    charge_id: str
    kind: str
    subject: str
    tariff_id: str | None
    about: dict[str, str]
    quantities: dict[str, int]
    rates_micro_yuan: dict[str, int]
    amount_micro_yuan: int
    voucher_micro_yuan: int
    cash_micro_yuan: int
    vouchers_micro_yuan: dict[str, int]
    discount_micro_yuan: int = 0
    loss_micro_yuan: int = 0
    explanation: list[str] = []
    note: str = ""
    reverses: str | None = None


class Statement(View):
    """A firm's month. `closing = opening + top_ups - cash`."""

    firm_id: str
    period: str
    state: str
    lines: list[StatementLine]
    amount_micro_yuan: int
    voucher_micro_yuan: int
    cash_micro_yuan: int
    opening_micro_yuan: int
    top_ups_micro_yuan: int
    closing_micro_yuan: int
    hash: str
    closed_at: datetime | None = None


class CreditNote(View):
    """What was given back of a charge; its amounts are below zero."""

    id: str
    firm_id: str
    subject: str
    amount_micro_yuan: int
    voucher_micro_yuan: int
    cash_micro_yuan: int
    period: str


class CentreContract(View):
    """What part of the list price a centre is paid; `valid_from` None: without a contract."""

    centre: str
    payout_ppm: int
    valid_from: datetime | None
    valid_until: datetime | None


class UsageSent(View):
    accepted: int
    duplicates: int


class CentreLine(View):
    pool: str
    payout_ppm: int
    gpu_ms: int
    list_micro_yuan: int
    payable_micro_yuan: int


class CentreStatement(View):
    centre: str
    period: str
    lines: list[CentreLine]
    gpu_ms: int
    payable_micro_yuan: int


class OpenHold(View):
    id: str
    kind: str
    subject: str
    firm_id: str
    amount_micro_yuan: int
    expires_at: datetime


class Finding(View):
    invariant: str
    about: str
    detail: str


class LedgerCheck(View):
    """`ok`: every invariant holds."""

    ok: bool
    findings: list[Finding]
    accounts: int
    transfers: int
    blocks: int
    heads: int
    unsealed: int
    open_holds: list[OpenHold]
