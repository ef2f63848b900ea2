"""Every benchmark writes the same JSON beside the table it prints: `benchmarks/results/<name>.json`."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure. `ratio` is `value / reference`; `met` is None where the figure has no target."""

    metric: str
    value: float
    unit: str
    reference: str = ""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


def machine() -> str:
    """The machine in words: processor, cores, Python."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def publish(name: str, rows: list[Row]) -> Path:
    """Print the rows as a table and write them to `benchmarks/results/<name>.json`; returns that path."""
    table = Table(
        "metric",
        "value",
        "unit",
        "reference",
        "ratio",
        "target",
        "met",
        title=f"{name} · {machine()}",
    )
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        met = "" if row.met is None else ("yes" if row.met else "missed")
        table.add_row(
            row.metric,
            f"{row.value:,.4g}",
            row.unit,
            row.reference,
            ratio,
            row.target,
            met,
        )
    Console().print(table)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return path
