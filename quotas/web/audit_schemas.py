"""What the audit log's proof looks like on the wire."""

from datetime import datetime
from typing import Self

from kit.web import View
from quotas.adapters.audit_store import AuditBlock
from quotas.web.ledger_schemas import FindingOut


class AuditReportOut(View):
    findings: list[FindingOut]
    entries: int
    unsealed: int
    blocks: int
    heads: int


class AuditBlockOut(View):
    number: int
    entries: int
    previous: str
    hash: str
    sealed_at: datetime

    @classmethod
    def of(cls, block: AuditBlock) -> Self:
        """The block with its hashes in hexadecimal."""
        return cls(
            number=block.number,
            entries=block.entries,
            previous=block.previous.hex(),
            hash=block.hash.hex(),
            sealed_at=block.sealed_at,
        )
