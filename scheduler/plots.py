"""How runs went, drawn: accelerators in use, work waiting, and who waited how long; as SVG or PNG.

Matplotlib is the extra `plots`. The same runs give the same file, byte for byte.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import InvalidInput
from scheduler.outcomes import Course, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".svg", ".png")
COLOURS = ("#2563eb", "#ea580c", "#059669", "#7c3aed")
INK, FAINT = "#1f2937", "#9ca3af"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": "#e5e7eb",
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "heliu",
    "svg.fonttype": "none",
}
WAITS = (60, 600, 3600, 6 * 3600, 86_400, 7 * 86_400)
"""Seconds at which the axis of waits has marks."""


def require_drawable(path: Path) -> None:
    """Raises InvalidInput where `draw` could not write such a file."""
    if path.suffix not in KINDS:
        raise InvalidInput(f"a plot cannot be {path.name!r}", hint=f"name a file that ends in {', '.join(KINDS)}")
    if find_spec("matplotlib") is None:
        raise InvalidInput("plots need Matplotlib", hint="pip install 'heliu[plots]'")


def draw(path: Path, courses: Mapping[str, Course], outcomes: Mapping[str, Outcome], *, capacity: float) -> None:
    """Draw the named runs into a file, whose suffix says the format."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        groups = len(next(iter(outcomes.values())).groups) if outcomes else 0
        figure = Figure(figsize=(8, 5.2 + 0.3 * groups), layout="constrained")
        used, queue, waits = figure.subplots(3, 1, height_ratios=[2.2, 1.6, 0.7 + 0.3 * groups])
        _lines(used, {name: (one.hours, one.in_use) for name, one in courses.items()}, "Accelerators in use")
        used.axhline(capacity, color=FAINT, linewidth=1, linestyle="--")
        used.set_ylim(top=1.08 * max(1, capacity))
        used.sharex(queue)
        used.tick_params(labelbottom=False)
        _lines(queue, {name: (one.hours, one.waiting) for name, one in courses.items()}, "Work waiting")
        queue.set_xlabel("hours since the start")
        _waits(waits, outcomes)
        figure.legend(*used.get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False)
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)


def _lines(axes: "Axes", lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> None:
    for colour, (name, (x, y)) in zip(COLOURS, lines.items(), strict=False):
        axes.plot(x, y, drawstyle="steps-post", color=colour, linewidth=1.2, label=name)
    axes.set_title(title)
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.grid(axis="y")


def _waits(axes: "Axes", outcomes: Mapping[str, Outcome]) -> None:
    """For each firm and class a line from the median to the 99th percentile, with a dot at the 90th."""
    names: list[str] = []
    for run, (colour, told) in enumerate(zip(COLOURS, outcomes.values(), strict=False)):
        names = [f"{group.firm_id.removeprefix('firm_')} · {group.qos}" for group in told.groups]
        offset = 0.24 * (run - (len(outcomes) - 1) / 2)
        for row, group in enumerate(told.groups):
            y = row + offset
            axes.plot([group.wait_p50, group.wait_p99], [y, y], color=colour, linewidth=2, alpha=0.45)
            axes.plot([group.wait_p50], [y], marker="|", markersize=9, markeredgewidth=2, color=colour)
            axes.plot([group.wait_p90], [y], marker="o", markersize=5, color=colour)
    axes.set_title("Waits: from the median (|) over the 90th (●) to the 99th percentile")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.set_xscale("symlog", linthresh=WAITS[0])
    axes.set_xticks([0, *WAITS], ["0", *("1 min", "10 min", "1 h", "6 h", "1 day", "1 week")])
    axes.minorticks_off()
    axes.set_xlim(-5, max([WAITS[1], *(1.3 * group.wait_p99 for told in outcomes.values() for group in told.groups)]))
    axes.grid(axis="x")
