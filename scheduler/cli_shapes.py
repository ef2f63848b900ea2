"""What a worker needs, as it is typed and shown: `--gpus 0.5 --cpus 4 --memory 16GiB --spread apart`."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from kit.cli import wrong_usage

Gpus = Annotated[float, typer.Option(help="Accelerators per worker: whole ones, 0.5 for a share of one, 0 for none.")]
Cpus = Annotated[float, typer.Option(help="CPUs kept for each worker; 0: what others leave.")]
Memory = Annotated[str, typer.Option(help="Memory kept for each worker, as 16GiB or 512MiB.")]
SpreadOption = Annotated[str, typer.Option("--spread", help="same_node, same_centre (always so), or apart.")]
Topology = Annotated[
    str | None, typer.Option(help="All workers on nodes alike in this: a topology label, such as rack.")
]
_MIB = {"MiB": 1, "GiB": 1 << 10, "TiB": 1 << 20}


def shape_of(gpus: float, cpus: float, memory: str, spread: str, topology: str | None) -> dict[str, Any]:
    """The request's fields."""
    return {
        "gpus": gpus,
        "cpus": cpus,
        "memory_mib": mebibytes(memory),
        "spread": spread.replace("-", "_"),
        "topology": topology,
    }


def mebibytes(text: str) -> int:
    """`16GiB` → 16384."""
    found = re.fullmatch(r"(\d+)(MiB|GiB|TiB)", text)
    if found is None and text != "0":
        wrong_usage(f"--memory {text!r} is no amount of memory; write it as 16GiB or 512MiB")
    return int(found[1]) * _MIB[found[2]] if found else 0


def shown(row: Mapping[str, Any]) -> str:
    """`0.5 accelerators, 4 CPUs, 16 GiB, apart, same rack`."""
    parts = [f"{row['gpu_milli'] / 1000:g} accelerators"]
    parts += [f"{row['cpu_milli'] / 1000:g} CPUs"] if row["cpu_milli"] else []
    parts += [f"{row['memory_mib'] / 1024:g} GiB"] if row["memory_mib"] else []
    parts += [row["spread"].replace("_", " ")] if row["spread"] != "same_centre" else []
    parts += [f"same {row['topology']}"] if row["topology"] else []
    return ", ".join(parts)
