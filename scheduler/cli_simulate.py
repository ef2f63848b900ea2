"""`heliu simulate`, `heliu replay`: what other quotas would have done, and what was decided."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from kit.cli import USAGE, JsonFlag, call, console, fail, show
from kit.errors import HeliuError, InvalidInput
from kit.units import format_yuan, parse_yuan

if TYPE_CHECKING:
    from scheduler.outcomes import GroupOutcome, Outcome
    from scheduler.recording import Recording

app = typer.Typer()

AS_IT_IS, CHANGED = "as it is", "changed"
MICRO_PER_FEN = 10_000
GROUP_COLUMNS = {
    "firm": "Firm", "class": "Class", "run": "Run", "works": "Works", "wait_p50": "Wait p50", "wait_p90": "p90",
    "wait_p99": "p99", "slowdown": "Slowdown", "gpu_hours": "GPU-hours", "cost": "Cost", "evictions": "Stopped",
}  # fmt: skip
WHOLE_COLUMNS = {
    "run": "Run", "use": "In use", "jain": "Jain index of slowdown", "evictions": "Stopped", "lost": "Lost GPU-hours",
    "cost": "Cost", "hours": "Hours",
}  # fmt: skip
DECISION_COLUMNS = {
    "at": "When",
    "subject": "Workload",
    "firm_id": "Firm",
    "decision": "Decision",
    "because": "Because",
}


@app.command("simulate")
def simulate(
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="quota.FIRM.POOL=8, borrowing.…, lending.… or weight.FIRM=2.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A recording (JSON), or a public trace's tasks (CSV, with --nodes).")
    ] = None,
    nodes: Annotated[Path | None, typer.Option(help="The nodes of a public trace (CSV).")] = None,
    every: Annotated[int, typer.Option(min=1, help="Of a public trace's nodes take only every so-manieth.")] = 1,
    since: Annotated[
        datetime | None, typer.Option(help="From when on (UTC); default: a week ago, or a file's start.")
    ] = None,
    until: Annotated[datetime | None, typer.Option(help="Until when (UTC); default: now, or a file's end.")] = None,
    price: Annotated[
        str | None, typer.Option(help="Yuan for a GPU-hour everywhere, instead of the recorded prices.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Keep the recording in this file.")] = None,
    plot: Annotated[
        list[Path] | None, typer.Option(help="Draw use, queue and waits into this file (.svg, .png).")
    ] = None,
    pace: Annotated[int, typer.Option(min=1, help="At most one decision in so many seconds.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Play recorded work again with the scheduler's own decisions, as it was and under other rules."""
    from scheduler.cycle import Policy
    from scheduler.mix import priced
    from scheduler.outcomes import course, outcome
    from scheduler.plots import draw, require_drawable
    from scheduler.recording import changed, scenario_of
    from scheduler.simulation import simulate as play

    try:
        for path in plot or ():
            require_drawable(path)
        recording = _recording(trace, nodes, every, _utc(since), _utc(until))
        if price is not None:
            recording = recording.priced(parse_yuan(price))
        scenario = scenario_of(recording)
        scenarios = {AS_IT_IS: scenario} | ({CHANGED: changed(scenario, settings)} if settings else {})
        if save:
            save.write_text(recording.model_dump_json(indent=1), "utf-8")
        policy = priced(Policy(), scenario.mix, scenario.nodes.values())
        runs = {name: play(one, policy, pace_seconds=pace) for name, one in scenarios.items()}
        outcomes = {name: outcome(run) for name, run in runs.items()}
        for path in plot or ():
            courses = {name: course(run) for name, run in runs.items()}
            draw(path, courses, outcomes, capacity=runs[AS_IT_IS].capacity_milli / 1000)
    except HeliuError as error:
        fail(error.message, hint=error.hint, exit_code=USAGE)
    _tell(outcomes, as_json=as_json)


@app.command("replay")
def replay(
    after: Annotated[str, typer.Option(help="The cursor that an earlier page ended with.")] = "0-0",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many at most.")] = 200,
    as_json: JsonFlag = False,
) -> None:
    """Show decisions again, in the order in which they were made."""
    page = call("GET", "/api/decisions", params={"after": after, "limit": limit})
    if as_json:
        show(page, as_json=True)
        return
    rows = [
        row | {"decision": row["topic"].partition(".")[2], "because": _because(row["body"])}
        for row in page["decisions"]
    ]
    show(rows, as_json=False, columns=DECISION_COLUMNS)
    console.print(f"more: heliu replay --after {page['cursor']}", highlight=False)


def _recording(
    trace: Path | None, nodes: Path | None, every: int, since: datetime | None, until: datetime | None
) -> "Recording":
    from scheduler.recording import Recording
    from scheduler.traces import read_trace

    if trace is None:
        query = {name: at.isoformat() for name, at in (("since", since), ("until", until)) if at}
        return Recording.model_validate(call("GET", "/api/recording", params=query))
    if nodes is not None:
        return read_trace(nodes, trace, every=every).between(since, until)
    if trace.suffix == ".csv":
        raise InvalidInput(f"{trace} has tasks only", hint="give its nodes too: --nodes NODES.csv")
    try:
        return Recording.model_validate_json(trace.read_bytes()).between(since, until)
    except OSError as error:
        raise InvalidInput(f"{trace} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the file"
        message = f"{trace} is no recording: {where}: {fault['msg']}"
        raise InvalidInput(message, hint="heliu simulate --save makes one") from error


def _utc(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=at.tzinfo or UTC) if at else None


def _tell(outcomes: "Mapping[str, Outcome]", *, as_json: bool) -> None:
    """Firm by firm, with what changes beside what is; then the runs as a whole."""
    if as_json:
        show({name: _plain(told) for name, told in outcomes.items()}, as_json=True)
        return
    rows = [
        _group_row(told.groups[i], name, is_first=name == AS_IT_IS)
        for i in range(len(outcomes[AS_IT_IS].groups))
        for name, told in outcomes.items()
    ]
    show(rows, as_json=False, columns=GROUP_COLUMNS)
    whole = [
        {
            "run": name, "use": f"{told.use:.1%}", "jain": f"{told.jain:.3f}", "evictions": told.evictions,
            "lost": f"{told.lost_gpu_hours:.1f}", "cost": _money(told.cost_micro_yuan),
            "hours": f"{told.seconds / 3600:.1f}",
        }
        for name, told in outcomes.items()
    ]  # fmt: skip
    show(whole, as_json=False, columns=WHOLE_COLUMNS)


def _plain(told: "Outcome") -> dict[str, Any]:
    fields = {name: getattr(told, name) for name in told.__slots__ if name != "groups"}
    return fields | {"groups": [{name: getattr(one, name) for name in one.__slots__} for one in told.groups]}


def _group_row(group: "GroupOutcome", run: str, *, is_first: bool) -> dict[str, str]:
    return {
        "firm": group.firm_id.removeprefix("firm_") if is_first else "",
        "class": group.qos if is_first else "",
        "run": run,
        "works": f"{group.works}" if group.ended == group.works else f"{group.ended} of {group.works}",
        "wait_p50": _span(group.wait_p50),
        "wait_p90": _span(group.wait_p90),
        "wait_p99": _span(group.wait_p99),
        "slowdown": f"{group.slowdown:.2f}",
        "gpu_hours": f"{group.gpu_hours:,.1f}",
        "cost": _money(group.cost_micro_yuan),
        "evictions": f"{group.evictions}",
    }


def _money(micro_yuan: int) -> str:
    """Without fractions of a fen; nothing where nothing has a price."""
    return "–" if not micro_yuan else format_yuan(micro_yuan - micro_yuan % MICRO_PER_FEN)


def _span(seconds: float) -> str:
    """`34 s`, `12 min`, `3.4 h`, `2.5 d`: as exact as anybody reads it."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} h"
    return f"{seconds / 86_400:.1f} d"


def _scored(score: Mapping[str, Any] | None) -> str:
    if not score:
        return ""
    best, second = score["best"], score["second"]
    parts = f"; score {best['total']} (packing {best['packing']}, model {best['model']:g}, data {best['data']:g})"
    return f"{parts}, next best {second['node']} with {second['total']}" if second else parts


def _because(body: Mapping[str, Any]) -> str:
    if "nodes" in body:
        return f"room in {body['pool']} on {', '.join(body['nodes'])}{_scored(body.get('score'))}"
    return str(body.get("detail") or body.get("rule") or body.get("message") or body.get("cause") or "")
