"""The chart of accounts: every account the platform keeps, by code. docs/ledger.md shows what posts where."""

from dataclasses import dataclass

from quotas.ledger import CNY, RESIDUE, STORAGE_RESIDUE, gpu_asset, voucher_asset
from quotas.vocabulary import CentreName, FirmId, PoolName, ProgrammeId, UsageKind, VoucherId


@dataclass(frozen=True, slots=True, order=True)
class AccountSpec:
    """An account as it is opened. A bounded one never goes below zero, or below its credit line."""

    code: str
    asset: str
    owner: str
    bounded: bool = False


BANK = AccountSpec("platform:bank", CNY, "platform")
CENTRE_COST = AccountSpec("platform:cost:centres", CNY, "platform")
OWN_COST = AccountSpec("platform:cost:own-workloads", CNY, "platform")
LOSS = AccountSpec("platform:loss", CNY, "platform")
RESIDUE_GIVEN = AccountSpec("platform:residue", RESIDUE, "platform")
RESIDUE_TAKEN = AccountSpec("firms:residue", RESIDUE, "platform")
STORAGE_RESIDUE_GIVEN = AccountSpec("platform:residue:storage", STORAGE_RESIDUE, "platform")
STORAGE_RESIDUE_TAKEN = AccountSpec("firms:residue:storage", STORAGE_RESIDUE, "platform")


def revenue(kind: UsageKind) -> AccountSpec:
    """What the platform earned, by kind of usage."""
    return AccountSpec(f"platform:revenue:{kind}", CNY, "platform")


def residue(kind: UsageKind) -> tuple[AccountSpec, AccountSpec]:
    """(what rounding gave firms, what it took): byte-hours divide a micro-yuan more finely than the rest."""
    if kind is UsageKind.STORAGE:
        return STORAGE_RESIDUE_GIVEN, STORAGE_RESIDUE_TAKEN
    return RESIDUE_GIVEN, RESIDUE_TAKEN


def firm_cash(firm_id: FirmId) -> AccountSpec:
    """A firm's prepaid money. What it has on hold is this account's pending debits."""
    return AccountSpec(f"firm:{firm_id}:cash", CNY, firm_id, bounded=True)


def firm_gpu(firm_id: FirmId, pool: PoolName) -> AccountSpec:
    """The GPU time of a pool that a firm consumed."""
    return AccountSpec(f"firm:{firm_id}:gpu:{pool}", gpu_asset(pool), firm_id)


def pool_capacity(pool: PoolName) -> AccountSpec:
    """The GPU time a centre's pool gave."""
    return AccountSpec(f"pool:{pool}:capacity", gpu_asset(pool), pool)


def centre_payable(centre: CentreName) -> AccountSpec:
    """What the platform owes a centre."""
    return AccountSpec(f"centre:{centre}:payable", CNY, centre)


def programme_issued(programme_id: ProgrammeId) -> AccountSpec:
    """The funder's promise, from which the pool is filled."""
    return AccountSpec(f"programme:{programme_id}:issued", voucher_asset(programme_id), programme_id)


def programme_pool(programme_id: ProgrammeId) -> AccountSpec:
    """What of a programme is not granted yet."""
    return AccountSpec(f"programme:{programme_id}:pool", voucher_asset(programme_id), programme_id, bounded=True)


def programme_redeemed(programme_id: ProgrammeId) -> AccountSpec:
    """What of a programme has paid for something."""
    return AccountSpec(f"programme:{programme_id}:redeemed", voucher_asset(programme_id), programme_id)


def funder_receivable(programme_id: ProgrammeId) -> AccountSpec:
    """What the funder owes the platform for vouchers that paid."""
    return AccountSpec(f"programme:{programme_id}:receivable", CNY, programme_id)


def voucher(voucher_id: VoucherId, programme_id: ProgrammeId) -> AccountSpec:
    """What one voucher still holds."""
    return AccountSpec(f"voucher:{voucher_id}", voucher_asset(programme_id), voucher_id, bounded=True)
