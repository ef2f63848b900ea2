"""Processor time of other processes, from /proc: what a server beside the benchmark took of the machine."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def seconds_of(server: int) -> float:
    """Of a process and its children, those that have ended included; Linux only."""
    own = _fields(Path(f"/proc/{server}"))
    assert own is not None, f"there is no process {server}"
    ticks = sum(int(own[at]) for at in (11, 12, 13, 14))  # user, system, and both of the children it has waited for
    for folder in Path("/proc").iterdir():
        fields = _fields(folder) if folder.name.isdigit() else None
        if fields is not None and int(fields[1]) == server:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def _fields(process: Path) -> list[str] | None:
    """What `stat` says after the program's name; None for a process that is gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
