"""Who may use how much of a pool: what a firm is promised, what it may borrow, and what it lends, through its tree.

Cohorts own nothing. What a firm does not keep for itself stands open to every firm of its tree, so three numbers of a
firm and one of its tree say all: `kept`, `nominal`, `ceiling`, and what the tree lends together. A firm outside every
cohort is a tree of its own: it has its nominal quota and nothing else (as in Kueue's cohorts).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from kit.units import GpuMilli
from quotas.vocabulary import CohortName, FirmId, PoolName

QuotaKey: TypeAlias = tuple[FirmId, PoolName]
Member: TypeAlias = FirmId | CohortName
UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class Quota:
    """What a firm has of a pool, in thousandths of an accelerator."""

    nominal: GpuMilli
    borrowing: GpuMilli | None = None  # the most above nominal; None: what its tree has
    lending: GpuMilli | None = None  # the most of nominal that others may use; None: all of it

    lent: int = field(init=False, repr=False, compare=False)  # how much of it stands open to the tree
    kept: int = field(init=False, repr=False, compare=False)  # how much of it nobody else may ever use
    ceiling: int = field(init=False, repr=False, compare=False)  # the most the firm may use at once

    def __post_init__(self) -> None:
        lent = self.nominal if self.lending is None else min(self.lending, self.nominal)
        object.__setattr__(self, "lent", lent)
        object.__setattr__(self, "kept", self.nominal - lent)
        ceiling = UNBOUNDED if self.borrowing is None else self.nominal + self.borrowing
        object.__setattr__(self, "ceiling", ceiling)

    def shared(self, used: int) -> int:
        """How much of `used` is taken from what the tree lends together."""
        return used - self.kept if used > self.kept else 0


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a firm or a cohort hangs, and its weight among its siblings in thousandths."""

    parent: CohortName | None
    weight_milli: int = 1000


NO_QUOTA = Quota(GpuMilli(0))


class Sharing:
    """Quotas and tree of one instant, with what follows from them worked out once."""

    def __init__(self, quotas: Mapping[QuotaKey, Quota], tree: Mapping[Member, Seat]) -> None:
        self._quotas, self._tree = quotas, tree
        self._paths: dict[Member, tuple[Member, ...]] = {}
        self._lent: dict[tuple[Member, PoolName], int] = {}
        for firm, pool in sorted(quotas):
            key = self.root(firm), pool
            self._lent[key] = self._lent.get(key, 0) + quotas[firm, pool].lent

    def quota(self, key: QuotaKey) -> Quota:
        """The firm's quota in the pool; without one it has none."""
        return self._quotas.get(key, NO_QUOTA)

    def path(self, firm: Member) -> tuple[Member, ...]:
        """From the top of a firm's (or cohort's) tree down to itself."""
        if firm not in self._paths:
            upwards: list[Member] = [firm]
            seat = self._tree.get(firm)
            while seat is not None and seat.parent is not None and seat.parent not in upwards:
                upwards.append(seat.parent)
                seat = self._tree.get(seat.parent)
            self._paths[firm] = tuple(reversed(upwards))
        return self._paths[firm]

    def root(self, firm: Member) -> Member:
        """The top of the firm's tree: a cohort, or the firm itself."""
        return self.path(firm)[0]

    def weight(self, member: Member) -> float:
        """Its share among its siblings; 1 unless said otherwise."""
        seat = self._tree.get(member)
        return 1.0 if seat is None else seat.weight_milli / 1000

    def lent(self, root: Member, pool: PoolName) -> int:
        """What the firms of a tree lend together."""
        return self._lent.get((root, pool), 0)

    def members(self, root: Member) -> list[Member]:
        """Everybody below a tree's top, by name: whoever may use what the tree lends, with a quota or without."""
        return sorted(member for member in {root, *self._tree} if self.root(member) == root)

    def left(self, key: QuotaKey, used: Mapping[FirmId, int]) -> int:
        """How much more the firm may take when the firms of its tree use `used` of the pool; may be negative."""
        firm, pool = key
        quota, mine = self.quota(key), used.get(firm, 0)
        taken = sum(self.quota((one, pool)).shared(milli) for one, milli in used.items())
        own = max(0, quota.kept - mine)
        return min(quota.ceiling - mine, own + self.lent(self.root(firm), pool) - taken)

    def most(self, key: QuotaKey) -> int:
        """What the firm could use if nobody else used anything."""
        return self.left(key, {})
