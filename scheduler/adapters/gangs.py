"""What the columns of a workload say of its gang, read as a row or as a record."""

from typing import Protocol

from kit.units import GpuMilli
from scheduler.vocabulary import Shape


class _Columns(Protocol):
    workers: int
    gpu_milli: int
    cpu_milli: int
    memory_mib: int

    @property
    def shape(self) -> Shape: ...


class Gang:
    """Equal workers, by the columns that say how many and what each needs."""

    __slots__ = ()

    @property
    def shape(self: _Columns) -> Shape:
        """What each worker needs."""
        return Shape.of(self.gpu_milli, self.cpu_milli, self.memory_mib)

    @property
    def need_milli(self: _Columns) -> GpuMilli:
        """Thousandths of the whole gang, as quota, money and usage count them."""
        return GpuMilli(self.workers * self.shape.counted_milli)
