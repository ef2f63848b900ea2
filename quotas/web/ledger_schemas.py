"""What the routes of centres and of the ledger itself give."""

from datetime import datetime
from typing import Self

from pydantic import Field

from kit.web import View
from quotas.vocabulary import CentreStatement, CheckReport, OpenHold


class CentreLineOut(View):
    pool: str
    payout_ppm: int
    gpu_ms: int
    list_micro_yuan: int
    payable_micro_yuan: int


class CentreStatementOut(View):
    centre: str
    period: str
    lines: list[CentreLineOut]
    gpu_ms: int
    payable_micro_yuan: int

    @classmethod
    def of(cls, one: CentreStatement) -> Self:
        """A centre's month as it is shown."""
        return cls(
            centre=one.centre,
            period=one.period,
            lines=[
                CentreLineOut(
                    pool=line.pool,
                    payout_ppm=line.payout_ppm,
                    gpu_ms=line.gpu_ms,
                    list_micro_yuan=line.list_micro_yuan,
                    payable_micro_yuan=line.payable,
                )
                for line in one.lines
            ],
            gpu_ms=one.gpu_ms,
            payable_micro_yuan=one.payable,
        )


class OpenHoldOut(View):
    id: str
    kind: str
    subject: str
    firm_id: str
    amount_micro_yuan: int
    expires_at: datetime

    @classmethod
    def of(cls, one: OpenHold) -> Self:
        """An open hold as it is shown."""
        return cls(
            id=one.id,
            kind=one.kind,
            subject=one.subject,
            firm_id=one.firm_id,
            amount_micro_yuan=one.amount,
            expires_at=one.expires_at,
        )


class FindingOut(View):
    invariant: str
    about: str
    detail: str


class CheckOut(View):
    """`ok` means that every invariant holds; open holds are named, not counted against it."""

    ok: bool
    findings: list[FindingOut]
    accounts: int
    transfers: int
    blocks: int
    heads: int = Field(description="blocks whose head was compared with the one kept outside the database")
    unsealed: int = Field(description="transfers that are in no block yet")
    open_holds: list[OpenHoldOut]

    @classmethod
    def of(cls, report: CheckReport) -> Self:
        """The ledger's examination as it is shown."""
        return cls(
            ok=not report.findings,
            findings=[FindingOut(invariant=f.invariant, about=f.about, detail=f.detail) for f in report.findings],
            accounts=report.accounts,
            transfers=report.transfers,
            blocks=report.blocks,
            heads=report.heads,
            unsealed=report.unsealed,
            open_holds=[OpenHoldOut.of(hold) for hold in report.open_holds],
        )
