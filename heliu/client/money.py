"""Prices, vouchers, payments, usage, statements, the ledger. What moves money carries an idempotency key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from heliu.client.money_views import (
    Account,
    CentreContract,
    CentreStatement,
    CreditNote,
    Discount,
    LedgerCheck,
    Preview,
    Programme,
    Statement,
    Tariff,
    UsageImport,
    UsageSent,
    Voucher,
)
from heliu.client.transport import Transport, new_idempotency_key


@dataclass(frozen=True, slots=True)
class Tariffs:
    """The price book."""

    _transport: Transport

    def publish(
        self,
        name: str,
        *,
        gpu: Sequence[Mapping[str, Any]] = (),
        tokens: Sequence[Mapping[str, Any]] = (),
        **more: Any,
    ) -> Tariff:
        """A new version of the whole book, from now on; also `images`, `audio`, `windows`, `valid_from`."""
        body = {"name": name, "gpu": list(gpu), "tokens": list(tokens)} | {k: _json(v) for k, v in more.items()}
        return Tariff(**self._transport.json("POST", "/api/tariffs", body=body))

    def list(self) -> list[Tariff]:
        """Every version, oldest first."""
        return [Tariff(**row) for row in self._transport.json("GET", "/api/tariffs")]

    def preview(self, draft: Mapping[str, Any], *, period: str | None = None, firm_id: str | None = None) -> Preview:
        """What a month (by default the last whole one) would have cost with a draft of the book. Publishes nothing."""
        body = {"tariff": dict(draft), "period": period, "firm_id": firm_id}
        return Preview(**self._transport.json("POST", "/api/tariffs/preview", body=body))


@dataclass(frozen=True, slots=True)
class Discounts:
    """What contracts take off firms' rates."""

    _transport: Transport

    def grant(self, firm_id: str, kind: str, *, off_ppm: int, contract: str, **terms: Any) -> Discount:
        """Grant one; also `resource`, `valid_from`, `valid_until`. Raises AwaitsApproval: a second person approves."""
        body = {"firm_id": firm_id, "kind": kind, "off_ppm": off_ppm, "contract": contract}
        body |= {name: _json(value) for name, value in terms.items()}
        return Discount(**self._transport.json("POST", "/api/discounts", body=body))

    def list(self, firm_id: str | None = None) -> list[Discount]:
        """A firm's discounts, past and to come, oldest first."""
        return [Discount(**row) for row in self._transport.json("GET", "/api/discounts", query={"firm_id": firm_id})]

    def end(self, discount_id: str) -> Discount:
        """Let one end now."""
        return Discount(**self._transport.json("POST", f"/api/discounts/{discount_id}/end"))


@dataclass(frozen=True, slots=True)
class Usage:
    """What ran outside the platform."""

    _transport: Transport

    def send(self, events: Sequence[Mapping[str, Any]]) -> UsageSent:
        """Charge a batch of CloudEvents (at most 1,000), all or none; one sent before changes nothing."""
        sent = [{name: _json(value) for name, value in event.items()} for event in events]
        key = new_idempotency_key()  # source and id name an event for ever
        return UsageSent(**self._transport.json("POST", "/api/usage-events", body=sent, idempotency_key=key))

    def import_slurm(
        self,
        file: Path,
        *,
        source: str,
        accounts: Mapping[str, str],
        partitions: Mapping[str, str],
        qos: str = "standard",
        timezone: str = "Asia/Shanghai",
        dry_run: bool = False,
    ) -> UsageImport:
        """Charge the jobs in a file of `sacct -P -X`, all or none and each of a `source` once.

        `accounts`: Slurm account → firm, or firm/project; `partitions`: Slurm partition → pool.
        """
        query = {
            "source": source,
            "account": [f"{name}={firm}" for name, firm in accounts.items()],
            "partition": [f"{name}={pool}" for name, pool in partitions.items()],
            "qos": qos,
            "timezone": timezone,
            "dry_run": dry_run,
        }
        key = new_idempotency_key()  # a job that was charged is not charged again
        done = self._transport.json(
            "POST", "/api/usage-imports", query=query, content=file.read_bytes(), idempotency_key=key
        )
        return UsageImport(**done)


@dataclass(frozen=True, slots=True)
class Vouchers:
    """Programmes and the vouchers granted under them."""

    _transport: Transport

    def open_programme(self, **terms: Any) -> Programme:
        """Open one: name, funder, share_ppm, pool_micro_yuan, cap_per_firm_year_micro_yuan, valid_until."""
        sent = {name: _json(value) for name, value in terms.items()}
        return Programme(**self._transport.json("POST", "/api/programmes", body=sent))

    def programmes(self) -> list[Programme]:
        """Every programme and what is left in its pool."""
        return [Programme(**row) for row in self._transport.json("GET", "/api/programmes")]

    def grant(
        self,
        programme_id: str,
        firm_id: str,
        amount_micro_yuan: int,
        *,
        note: str = "",
        idempotency_key: str | None = None,
    ) -> Voucher:
        """Grant a firm part of a programme's pool."""
        body = {"programme_id": programme_id, "firm_id": firm_id, "amount_micro_yuan": amount_micro_yuan, "note": note}
        key = idempotency_key or new_idempotency_key()
        return Voucher(**self._transport.json("POST", "/api/vouchers", body=body, idempotency_key=key))

    def list(self, firm_id: str | None = None) -> list[Voucher]:
        """A firm's vouchers, in the order in which they pay."""
        return [Voucher(**row) for row in self._transport.json("GET", "/api/vouchers", query={"firm_id": firm_id})]


@dataclass(frozen=True, slots=True)
class Money:
    """A firm's account and statements, a centre's, and the ledger's examination."""

    _transport: Transport

    def top_up(
        self, firm_id: str, amount_micro_yuan: int, *, evidence: str, idempotency_key: str | None = None
    ) -> None:
        """Book money that reached the platform's bank account."""
        body = {"firm_id": firm_id, "amount_micro_yuan": amount_micro_yuan, "evidence": evidence}
        key = idempotency_key or new_idempotency_key()
        self._transport.json("POST", "/api/top-ups", body=body, idempotency_key=key)

    def withdraw(
        self, firm_id: str, amount_micro_yuan: int, *, evidence: str, idempotency_key: str | None = None
    ) -> None:
        """Book money that was paid back to a firm."""
        body = {"firm_id": firm_id, "amount_micro_yuan": amount_micro_yuan, "evidence": evidence}
        key = idempotency_key or new_idempotency_key()
        self._transport.json("POST", "/api/withdrawals", body=body, idempotency_key=key)

    def set_credit_line(self, firm_id: str, amount_micro_yuan: int, *, reason: str) -> Account:
        """Let a firm pay later, up to an amount; 0 makes it prepaid again."""
        body = {"amount_micro_yuan": amount_micro_yuan, "reason": reason}
        return Account(**self._transport.json("PUT", f"/api/firms/{firm_id}/credit-line", body=body))

    def refund(self, charge_id: str, *, reason: str) -> CreditNote:
        """Give a charge back by a credit note, to each of its vouchers and to cash what they paid."""
        return CreditNote(**self._transport.json("POST", f"/api/charges/{charge_id}/refund", body={"reason": reason}))

    def account(self, firm_id: str | None = None) -> Account:
        """A firm's money as it stands now."""
        return Account(**self._transport.json("GET", "/api/account", query={"firm_id": firm_id}))

    def statement(self, period: str, firm_id: str | None = None) -> Statement:
        """A firm's month, "2026-11"."""
        query = {"period": period, "firm_id": firm_id}
        return Statement(**self._transport.json("GET", "/api/statements", query=query))

    def centre_statement(self, centre: str, period: str) -> CentreStatement:
        """What a centre lent in a month and what it is owed."""
        query = {"centre": centre, "period": period}
        return CentreStatement(**self._transport.json("GET", "/api/centre-statements", query=query))

    def sign_contract(self, centre: str, payout_ppm: int, *, reason: str) -> CentreContract:
        """From now on pay a centre so many millionths of the list price of the time it lends."""
        body = {"payout_ppm": payout_ppm, "reason": reason}
        return CentreContract(**self._transport.json("PUT", f"/api/centres/{centre}/contract", body=body))

    def contracts(self, centre: str) -> list[CentreContract]:
        """What a centre is and was paid of the list price, oldest first."""
        return [CentreContract(**row) for row in self._transport.json("GET", f"/api/centres/{centre}/contracts")]

    def check_ledger(self) -> LedgerCheck:
        """Examine every invariant over the whole ledger."""
        return LedgerCheck(**self._transport.json("GET", "/api/ledger/check"))


def _json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
