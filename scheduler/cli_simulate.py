"""`heliu simulate`, `heliu replay`: what other quotas would have done, and what was decided."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from kit.cli import USAGE, JsonFlag, call, console, fail, show
from kit.errors import HeliuError
from scheduler.cycle import Policy
from scheduler.outcomes import Outcome, outcome, series
from scheduler.plots import svg
from scheduler.recording import Recording, changed, scenario_of
from scheduler.simulation import simulate as play

app = typer.Typer()

FIRM_COLUMNS = {
    "run": "Run", "firm_id": "Firm", "works": "Works", "ended": "Ended", "wait_mean": "Waits (s)",
    "wait_p95": "95 % wait (s)", "slowdown": "Slowdown", "gpu_hours": "GPU-hours", "evictions": "Stopped",
    "lost_gpu_hours": "Lost",
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
    trace: Annotated[Path | None, typer.Option(help="A recording in a file, instead of the platform's own.")] = None,
    since: Annotated[
        str | None, typer.Option(help="From when on, e.g. 2026-11-02T00:00Z; default: a week ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Until when; default: now.")] = None,
    save: Annotated[Path | None, typer.Option(help="Keep the recording in this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw use and queue into this SVG file.")] = None,
    pace: Annotated[int, typer.Option(min=1, help="At most one decision in so many seconds.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Play recorded work again with the scheduler's own decisions, as it was and under other rules."""
    recording = _recording(trace, since, until)
    if save:
        save.write_text(recording.model_dump_json(indent=1))
    scenario = scenario_of(recording)
    runs = {"as it is": scenario}
    try:
        if settings:
            runs["changed"] = changed(scenario, settings)
    except HeliuError as error:
        fail(error.message, hint=error.hint, exit_code=USAGE)
    played = {name: play(one, Policy(), pace_seconds=pace) for name, one in runs.items()}
    outcomes = {name: outcome(run) for name, run in played.items()}
    if plot:
        plot.write_text(svg({name: series(run) for name, run in played.items()}))
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


def _recording(trace: Path | None, since: str | None, until: str | None) -> Recording:
    if trace is None:
        query = {name: value for name, value in (("since", since), ("until", until)) if value}
        return Recording.model_validate(call("GET", "/api/recording", params=query))
    if not trace.is_file():
        fail(f"there is no file {trace}", exit_code=USAGE)
    try:
        return Recording.model_validate_json(trace.read_bytes())
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the file"
        fail(
            f"{trace} is no recording: {where}: {fault['msg']}", hint="heliu simulate --save makes one", exit_code=USAGE
        )


def _tell(outcomes: Mapping[str, Outcome], *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for name, told in outcomes.items():
        for firm in told.firms:
            fields = {field: getattr(firm, field) for field in firm.__slots__}
            rows.append({"run": name} | {f: round(v, 2) if isinstance(v, float) else v for f, v in fields.items()})
    whole = {
        name: {"use": round(told.use, 4), "jain_of_slowdown": round(told.jain, 4), "seconds": told.seconds}
        for name, told in outcomes.items()
    }
    if as_json:
        show({"firms": rows, "runs": whole}, as_json=True)
        return
    show(rows, as_json=False, columns=FIRM_COLUMNS)
    for name, told in outcomes.items():
        text = f"{name}: {told.use:.1%} of the accelerators in use over {told.seconds / 3600:.1f} h; "
        console.print(text + f"Jain index of slowdown {told.jain:.3f}", highlight=False)


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
