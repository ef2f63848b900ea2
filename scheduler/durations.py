"""How long a job is expected to take: as declared, as earlier jobs of that name took, or as its recipe estimates."""

from dataclasses import replace
from statistics import median

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from scheduler.recipes import Prepared

HISTORY = 20
"""How many of the last jobs are looked at."""
ENOUGH = 3
"""With fewer the recipe's estimate stands."""


async def expect(
    tx: AsyncSession, prepared: Prepared, *, firm_id: str, name: str, declared_seconds: int | None
) -> Prepared:
    """The job with the duration to plan with, and where that comes from; never more than it may run."""
    if declared_seconds is not None:
        return replace(
            prepared,
            expected_seconds=min(declared_seconds, prepared.max_runtime_seconds),
            basis="declared by its submitter",
        )
    ratios = await _ratios(tx, firm_id, prepared.recipe.name, name)
    if len(ratios) < ENOUGH:
        return prepared
    learned = round(prepared.expected_seconds * median(ratios))
    return replace(
        prepared,
        expected_seconds=max(1, min(learned, prepared.max_runtime_seconds)),
        basis=f"learned from the last {len(ratios)} jobs named {name} ({prepared.basis})",
    )


async def _ratios(tx: AsyncSession, firm_id: str, recipe: str, name: str) -> list[float]:
    """How many times its recipe's estimate each of the last successful jobs of this name took."""
    rows = await tx.execute(
        text("""
            SELECT (w.kept_ms + a.ran_ms) / 1000.0 / w.estimated_seconds AS ratio
            FROM scheduler.workload w JOIN scheduler.attempt a ON a.workload_id = w.id AND a.fence = w.fence
            WHERE w.firm_id = :firm AND w.kind = 'job' AND w.recipe = :recipe AND w.name = :name
              AND w.state = 'succeeded' AND w.estimated_seconds IS NOT NULL
            ORDER BY w.submitted_at DESC LIMIT :many"""),
        {"firm": firm_id, "recipe": recipe, "name": name, "many": HISTORY},
    )
    return [float(ratio) for (ratio,) in rows]
