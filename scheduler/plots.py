"""Step lines over time as an SVG: one panel for each quantity, one colour for each run. No library."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, PANEL, LEFT, TOP = 720, 180, 56, 28
COLOURS = ("#1f6feb", "#d1495b", "#2a9d62", "#8a63d2")
Line = Sequence[tuple[float, float]]


def svg(runs: Mapping[str, Mapping[str, Line]]) -> str:
    """Runs by name, each with lines by quantity: (seconds, value). Quantities share panels across runs."""
    quantities = list(dict.fromkeys(name for lines in runs.values() for name in lines))
    end = max((x for lines in runs.values() for line in lines.values() for x, _ in line), default=0.0) or 1.0
    height = TOP + (PANEL + TOP) * len(quantities)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{WIDTH}" height="{height}" fill="white"/>'
    ]
    for i, name in enumerate(runs):
        colour, x = COLOURS[i % len(COLOURS)], LEFT + 140 * i
        parts.append(f'<text x="{x}" y="16" fill="{colour}">{escape(name)}</text>')
    for i, quantity in enumerate(quantities):
        lines = [(COLOURS[n % len(COLOURS)], run.get(quantity, ())) for n, run in enumerate(runs.values())]
        parts += _panel(quantity, lines, end, TOP + i * (PANEL + TOP))
    return "\n".join([*parts, "</svg>\n"])


def _panel(title: str, lines: Sequence[tuple[str, Line]], end: float, y: int) -> list[str]:
    top = max((value for _, line in lines for _, value in line), default=0.0) or 1.0
    wide, low = WIDTH - LEFT - 12, y + PANEL
    parts = [
        f'<text x="{LEFT}" y="{y + 12}">{escape(title)}</text>',
        f'<path d="M{LEFT} {y + 18}V{low}H{LEFT + wide}" fill="none" stroke="#999"/>',
        f'<text x="{LEFT - 6}" y="{y + 26}" text-anchor="end">{top:,.4g}</text>',
        f'<text x="{LEFT - 6}" y="{low}" text-anchor="end">0</text>',
        f'<text x="{LEFT + wide}" y="{low + 13}" text-anchor="end">{end / 3600:.3g} h</text>',
    ]
    for colour, line in lines:
        steps = [f"{LEFT + wide * x / end:.1f} {low - (PANEL - 24) * value / top:.1f}" for x, value in line]
        if steps:
            path = "M" + " ".join(
                f"H{step.split()[0]}V{step.split()[1]}" if n else step for n, step in enumerate(steps)
            )
            parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return parts
