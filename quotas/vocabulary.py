"""The words of `quotas`: ids, enums and frozen records that other packages may hold.

Money is integer micro-yuan, GPU time integer GPU-milliseconds; a period is a Shanghai month written "YYYY-MM".
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, NewType

from kit.units import GpuMs, MicroYuan, Ppm, Tokens
from quotas.vocabulary_people import ALLOWANCES_CHANNEL as ALLOWANCES_CHANNEL
from quotas.vocabulary_people import CLUSTER_NAMES as CLUSTER_NAMES
from quotas.vocabulary_people import DEFAULT_PROJECT as DEFAULT_PROJECT
from quotas.vocabulary_people import FIRM_ROLES as FIRM_ROLES
from quotas.vocabulary_people import KEYS_CHANNEL as KEYS_CHANNEL
from quotas.vocabulary_people import PLACES_CHANNEL as PLACES_CHANNEL
from quotas.vocabulary_people import PLATFORM_FIRM as PLATFORM_FIRM
from quotas.vocabulary_people import RATES_CHANNEL as RATES_CHANNEL
from quotas.vocabulary_people import STAFF_ROLES as STAFF_ROLES
from quotas.vocabulary_people import Ceilings as Ceilings
from quotas.vocabulary_people import ChannelKind as ChannelKind
from quotas.vocabulary_people import CohortName as CohortName
from quotas.vocabulary_people import EffectiveLimits as EffectiveLimits
from quotas.vocabulary_people import ExportFormat as ExportFormat
from quotas.vocabulary_people import FirmId as FirmId
from quotas.vocabulary_people import FirmKind as FirmKind
from quotas.vocabulary_people import FirmState as FirmState
from quotas.vocabulary_people import FirmView as FirmView
from quotas.vocabulary_people import IndustryCluster as IndustryCluster
from quotas.vocabulary_people import KeyGrant as KeyGrant
from quotas.vocabulary_people import KeyId as KeyId
from quotas.vocabulary_people import LimitKind as LimitKind
from quotas.vocabulary_people import MemberId as MemberId
from quotas.vocabulary_people import MoneyAction as MoneyAction
from quotas.vocabulary_people import Overrun as Overrun
from quotas.vocabulary_people import Payer as Payer
from quotas.vocabulary_people import PlaceAsk as PlaceAsk
from quotas.vocabulary_people import PlaceLease as PlaceLease
from quotas.vocabulary_people import ProjectId as ProjectId
from quotas.vocabulary_people import ProjectView as ProjectView
from quotas.vocabulary_people import ProposalState as ProposalState
from quotas.vocabulary_people import RateAsk as RateAsk
from quotas.vocabulary_people import RateLease as RateLease
from quotas.vocabulary_people import RateLimits as RateLimits
from quotas.vocabulary_people import RequestState as RequestState
from quotas.vocabulary_people import ReviewStep as ReviewStep
from quotas.vocabulary_people import Role as Role
from quotas.vocabulary_people import Scope as Scope
from quotas.vocabulary_people import Use as Use

HoldId = NewType("HoldId", str)
ChargeId = NewType("ChargeId", str)
LeaseId = NewType("LeaseId", str)
DiscountId = NewType("DiscountId", str)
ProgrammeId = NewType("ProgrammeId", str)
VoucherId = NewType("VoucherId", str)
TariffId = NewType("TariffId", str)
PoolName = NewType("PoolName", str)  # "<centre>/<accelerator>"
CentreName = NewType("CentreName", str)
ModelName = NewType("ModelName", str)
Period = NewType("Period", str)  # "2026-11": a month of Asia/Shanghai


NO_KEY: Final = KeyId("")
"""Of what no key used."""
NOTHING: Final = MicroYuan(0)


def centre_of(pool: PoolName) -> CentreName:
    """The centre that lends a pool: the part before the slash."""
    return CentreName(pool.split("/", 1)[0])


# --- money ---------------------------------------------------------------------------------------------------------


class QoS(StrEnum):
    """How firmly a workload holds its GPUs; prices differ by it."""

    RESERVED = "reserved"
    STANDARD = "standard"
    INTERRUPTIBLE = "interruptible"


class UsageKind(StrEnum):
    COMPUTE = "compute"
    TOKENS = "tokens"
    IMAGES = "images"
    AUDIO = "audio"
    STORAGE = "storage"


class HoldState(StrEnum):
    OPEN = "open"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


class StatementState(StrEnum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class RefusalReason(StrEnum):
    """Why money said no. The ledger's reasons come first, in the order in which they are checked."""

    AMOUNT_NOT_POSITIVE = "amount_not_positive"
    AMOUNT_TOO_LARGE = "amount_too_large"
    PENDING_UNKNOWN = "pending_unknown"
    PENDING_RESOLVED = "pending_resolved"
    PENDING_EXPIRED = "pending_expired"
    PENDING_NOT_EXPIRED = "pending_not_expired"
    EXCEEDS_PENDING = "exceeds_pending"
    SAME_ACCOUNT = "same_account"
    ACCOUNT_UNKNOWN = "account_unknown"
    ASSET_MISMATCH = "asset_mismatch"
    ACCOUNT_CLOSED = "account_closed"
    EXCEEDS_FUNDS = "exceeds_funds"
    # what the services add
    NO_MONEY = "no_money"
    NO_TARIFF = "no_tariff"
    ABOVE_CAP = "above_cap"
    FIRM_CAP_REACHED = "firm_cap_reached"
    POOL_EMPTY = "pool_empty"
    PROGRAMME_CLOSED = "programme_closed"


@dataclass(frozen=True, slots=True)
class GpuRate:
    """The price of one GPU-hour of a pool at a QoS, and the tariff version that says so."""

    tariff_id: TariffId
    micro_yuan_per_gpu_hour: MicroYuan


@dataclass(frozen=True, slots=True)
class TokenRate:
    """Micro-yuan per million tokens of one model, by kind."""

    tariff_id: TariffId
    input: MicroYuan
    cached_input: MicroYuan
    output: MicroYuan


@dataclass(frozen=True, slots=True)
class ComputeQuote:
    """What a workload may cost: the least and the most, and who would pay the most."""

    tariff_id: TariffId
    min_micro_yuan: MicroYuan
    max_micro_yuan: MicroYuan
    voucher_pays_min: MicroYuan
    voucher_pays_max: MicroYuan
    cash_min: MicroYuan
    cash_max: MicroYuan
    voucher_ids: tuple[VoucherId, ...]
    explanation: tuple[str, ...]
    affordable: bool
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class VoucherPart:
    """What one voucher holds or pays of an amount; `base` is the cost it subsidises at `share_ppm`."""

    voucher_id: VoucherId
    base: MicroYuan
    share_ppm: Ppm
    amount: MicroYuan


@dataclass(frozen=True, slots=True)
class Hold:
    """Money put aside for a workload: `amount = cash + sum(vouchers)`."""

    id: HoldId
    firm_id: FirmId
    project_id: ProjectId
    subject: str
    amount: MicroYuan
    cash: MicroYuan
    vouchers: tuple[VoucherPart, ...]
    tariff_id: TariffId
    state: HoldState
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class ComputeUsage:
    """GPU time one attempt used in [started_at, ended_at). (attempt_id, started_at) names it for ever."""

    subject: str
    attempt_id: str
    firm_id: FirmId
    project_id: ProjectId
    pool: PoolName
    centre: CentreName
    qos: QoS
    gpu_ms: GpuMs
    started_at: datetime
    ended_at: datetime
    note: str = ""  # what the statement says beside it


@dataclass(frozen=True, slots=True)
class Charge:
    """One line of a statement: what was used, at which tariff, and who paid."""

    id: ChargeId
    firm_id: FirmId
    project_id: ProjectId
    kind: UsageKind
    subject: str
    tariff_id: TariffId | None
    amount: MicroYuan
    cash: MicroYuan
    voucher: MicroYuan
    period: Period
    gpu_ms: GpuMs
    vouchers: tuple[VoucherPart, ...] = ()


@dataclass(frozen=True, slots=True)
class AllowanceLease:
    """A slice of a firm's money in a gateway's hands: a ledger hold the holder must renew, return or lose.

    `tokens_left`: tokens of the month's limit that are its own, where there is such a limit.
    """

    id: LeaseId
    holder: str
    firm_id: FirmId
    amount_left: MicroYuan
    expires_at: datetime
    recalled: bool = False
    tokens_left: int = 0


class TokenUsage(NamedTuple):
    """What one request used. (source, id) names it for ever; `dedicated` tokens are metered at price zero."""

    id: str
    source: str
    key_id: KeyId
    firm_id: FirmId
    project_id: ProjectId
    model: ModelName
    base_model: ModelName
    input: Tokens
    cached_input: Tokens
    output: Tokens
    at: datetime
    outcome: str
    lease_id: LeaseId | None = None
    dedicated: bool = False


@dataclass(frozen=True, slots=True)
class MeteredUsage:
    """Images, audio or storage that was used. (source, id) names it for ever, whatever its kind.

    `quantity` counts images, milliseconds of audio, or byte-hours; `resource` is the model, or what stores.
    """

    id: str
    source: str
    kind: UsageKind
    firm_id: FirmId
    project_id: ProjectId
    resource: ModelName
    base_resource: ModelName
    quantity: int
    at: datetime
    key_id: KeyId = NO_KEY
    outcome: str = "stop"
    lease_id: LeaseId | None = None
    dedicated: bool = False


@dataclass(frozen=True, slots=True)
class StorageMeasure:
    """What a project's files took in the hour that ended at `hour`."""

    firm_id: FirmId
    project_id: ProjectId
    stored_bytes: int
    hour: datetime


@dataclass(frozen=True, slots=True)
class OpenHold:
    """A ledger hold that is not resolved; `id` is a hold's or a lease's."""

    id: str
    kind: str
    subject: str
    firm_id: FirmId
    amount: MicroYuan
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Finding:
    """Something an invariant's checker found wrong."""

    invariant: str
    about: str
    detail: str


@dataclass(frozen=True, slots=True)
class StatementLine:
    charge_id: ChargeId
    kind: UsageKind
    subject: str
    project_id: ProjectId
    tariff_id: TariffId | None
    service_period: Period
    first_at: datetime
    last_at: datetime
    about: dict[str, str]
    quantities: dict[str, int]
    rates: dict[str, int]
    amount: MicroYuan
    voucher: MicroYuan
    cash: MicroYuan
    vouchers: dict[str, int]
    explanation: tuple[str, ...] = ()
    note: str = ""
    discount: MicroYuan = NOTHING
    contract_rates: dict[str, int] = field(default_factory=dict)
    loss: MicroYuan = NOTHING  # used, and nobody paid it
    reverses: ChargeId | None = None  # a credit note's charge


@dataclass(frozen=True, slots=True)
class Statement:
    """A firm's month. `closing = opening + top_ups - cash`, to the micro-yuan; amounts are after `discount`."""

    firm_id: FirmId
    period: Period
    starts_at: datetime
    ends_at: datetime
    state: StatementState
    lines: tuple[StatementLine, ...]
    amount: MicroYuan
    voucher: MicroYuan
    cash: MicroYuan
    opening: MicroYuan
    top_ups: MicroYuan
    closing: MicroYuan
    hash: str
    closed_at: datetime | None = None
    discount: MicroYuan = NOTHING


@dataclass(frozen=True, slots=True)
class CentreLine:
    pool: PoolName
    payout_ppm: Ppm
    gpu_ms: GpuMs
    list_micro_yuan: MicroYuan
    payable: MicroYuan


@dataclass(frozen=True, slots=True)
class CentreStatement:
    """What a centre lent in a month and what it is owed for it."""

    centre: CentreName
    period: Period
    lines: tuple[CentreLine, ...]
    gpu_ms: GpuMs
    payable: MicroYuan


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The ledger's self-examination: empty findings mean every invariant holds."""

    findings: tuple[Finding, ...]
    accounts: int
    transfers: int
    blocks: int
    open_holds: tuple[OpenHold, ...] = field(default=())
    heads: int = 0
    """How many blocks' heads were compared with those kept outside the database."""
    unsealed: int = 0
    """How many transfers are in no block yet."""
