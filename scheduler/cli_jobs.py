"""`heliu quote`, `heliu job`: ask for a price and a time, submit, watch, explain, cancel."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from kit.cli import REFUSED, JsonFlag, call, console, show, show_line, wrong_usage
from kit.units import format_yuan, parse_yuan
from scheduler.cli_shapes import Cpus, Gpus, Memory, SpreadOption, Topology, shape_of, shown

app = typer.Typer()
job = typer.Typer(help="Jobs: submit, list, show, logs, why, pause, resume, priority, cancel.", no_args_is_help=True)
app.add_typer(job, name="job")

FOLLOW_SECONDS = 20
JOB_COLUMNS = {
    "id": "Job", "name": "Name", "recipe": "Recipe", "state": "State", "wait_reason": "Waits for",
    "expected_start": "Start", "expected_finish": "Finish", "charged": "Charged",
}  # fmt: skip
DETAIL_COLUMNS = {
    "id": "Job", "name": "Name", "recipe": "Recipe", "params": "Parameters", "pools": "Pools", "workers": "Workers",
    "shape": "Each worker",
    "state": "State", "priority": "Priority", "deadline": "Deadline", "wait_detail": "Why it waits",
    "expected_start": "Expected start",
    "expected_finish": "Expected finish", "progress": "Progress", "cause": "Last cause", "message": "Last message",
    "quote_id": "Quote", "cap": "Cap", "charged": "Charged", "lost": "Lost by the platform",
    "kept": "Checkpoint", "duration_basis": "Duration from", "retries": "Retries",
    "submitted_at": "Submitted", "started_at": "Started",
    "ended_at": "Ended", "artifact_ids": "Artifacts",
}  # fmt: skip
QUOTE_COLUMNS = {
    "id": "Quote", "price": "Price", "voucher_pays_max": "Voucher pays up to", "cash_max": "Cash up to",
    "affordable": "Affordable now", "expected_start": "Expected start", "expected_finish": "Expected finish",
    "wait_detail": "Because", "basis": "Duration from", "max_runtime_seconds": "May run (s)",
    "expires_at": "Holds until",
}  # fmt: skip

Recipe = Annotated[str, typer.Argument(help="What is done: lora-finetune, text-batch or script.")]
Params = Annotated[list[str] | None, typer.Option("--param", "-p", help="name=value; a value may be JSON.")]
Inputs = Annotated[list[str] | None, typer.Option("--input", "-i", help="file name=upload or artifact id.")]
Pools = Annotated[list[str], typer.Option("--pool", help="Acceptable pools, the best first; a,b are equally good.")]
Workers = Annotated[str, typer.Option(help="Equal workers, placed all or none; 2..8 starts with what fits.")]
QosOption = Annotated[str, typer.Option("--qos", help="reserved, standard or interruptible.")]
Priority = Annotated[int, typer.Option(help="Higher goes first.")]
MaxRuntime = Annotated[int | None, typer.Option("--max-runtime", help="Seconds it may run at most.")]
Deadline = Annotated[
    str | None,
    typer.Option(help="When it should be over, as 2026-12-01T18:00+08:00: of your own jobs the tightest goes first."),
]
Duration = Annotated[int | None, typer.Option(help="Seconds it will run, if you know; else learned from earlier jobs.")]
Afters = Annotated[
    list[str] | None,
    typer.Option(
        "--after", help="Run after this job or array succeeded; ID:any however it ended, ID:failed if it failed."
    ),
]
Name = Annotated[str | None, typer.Option(help="What you call it; durations are learned by name.")]
Project = Annotated[str | None, typer.Option("--project", help="Project id; default: the firm's default one.")]
JobId = Annotated[str, typer.Argument(help="A job's id (job_…).")]


@app.command("quote")
def ask_quote(
    recipe: Recipe,
    pool: Pools,
    param: Params = None,
    file: Inputs = None,
    workers: Workers = "1",
    gpus: Gpus = 1,
    cpus: Cpus = 0,
    memory: Memory = "0",
    spread: SpreadOption = "same_centre",
    topology: Topology = None,
    qos: QosOption = "standard",
    priority: Priority = 0,
    max_runtime: MaxRuntime = None,
    deadline: Deadline = None,
    duration: Duration = None,
    project: Project = None,
    name: Name = None,
    as_json: JsonFlag = False,
) -> None:
    """Price, who pays, expected start and finish, before you submit. Holds for 15 minutes."""
    shape = shape_of(gpus, cpus, memory, spread, topology)
    body = request(recipe, pool, param, file, workers, shape, qos, priority, max_runtime, project)
    body |= wishes(name, deadline, duration)
    quote = call("POST", "/api/quotes", json=body)
    if not as_json:
        least, most = format_yuan(quote["min_micro_yuan"]), format_yuan(quote["max_micro_yuan"])
        quote = priced(quote) | {"price": f"{least} to {most}"}
    show(quote, as_json=as_json, columns=QUOTE_COLUMNS)


@job.command("submit")
def submit(
    recipe: Recipe,
    pool: Pools,
    param: Params = None,
    file: Inputs = None,
    workers: Workers = "1",
    gpus: Gpus = 1,
    cpus: Cpus = 0,
    memory: Memory = "0",
    spread: SpreadOption = "same_centre",
    topology: Topology = None,
    qos: QosOption = "standard",
    priority: Priority = 0,
    max_runtime: MaxRuntime = None,
    deadline: Deadline = None,
    duration: Duration = None,
    project: Project = None,
    name: Name = None,
    quote: Annotated[str | None, typer.Option(help="A quote's id: its maximum caps the charge.")] = None,
    cap: Annotated[str | None, typer.Option(help="Stop it when it has spent this many yuan.")] = None,
    retries: Annotated[int, typer.Option(min=0, max=10, help="Tries after an error of its own; each is charged.")] = 0,
    after: Afters = None,
    key: Annotated[str | None, typer.Option("--key", help="Idempotency key: twice the same makes one job.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job."""
    shape = shape_of(gpus, cpus, memory, spread, topology)
    body = request(recipe, pool, param, file, workers, shape, qos, priority, max_runtime, project)
    body |= wishes(name, deadline, duration) | {"quote_id": quote, "cap_micro_yuan": yuan(cap), "retries": retries}
    body["after"] = edges(after)
    made = call("POST", "/api/jobs", json=body, headers={"Idempotency-Key": key} if key else {})
    show(made if as_json else priced(made), as_json=as_json, columns=DETAIL_COLUMNS)


@job.command("list")
def list_jobs(
    state: Annotated[list[str] | None, typer.Option(help="Only these states.")] = None,
    firm: Annotated[str | None, typer.Option(help="Another firm's id (the platform's staff).")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List your firm's jobs, newest first."""
    query: dict[str, Any] = {"limit": limit, "state": state or []} | ({"firm_id": firm} if firm else {})
    rows = call("GET", "/api/jobs", params=query)
    show(rows if as_json else [priced(row) for row in rows], as_json=as_json, columns=JOB_COLUMNS)


@job.command("show")
def show_job(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Show a job with its attempts and what it made."""
    seen = call("GET", f"/api/jobs/{job_id}")
    if not as_json:
        seen = priced(seen) | {
            "artifact_ids": [f"{made['name']} {made['id']}" for made in seen["artifacts"]],
            "kept": f"step {seen['checkpoint']['step']}" if seen["checkpoint"] else None,
            "lost": f"{seen['lost_gpu_ms'] / 1000:,.1f} GPU-s, not charged" if seen["lost_gpu_ms"] else None,
        }
    show(seen, as_json=as_json, columns=DETAIL_COLUMNS)
    if not as_json:
        columns = {"id": "Attempt", "state": "State", "nodes": "Nodes", "cause": "Cause", "ran_ms": "Ran (ms)"}
        tries = [one | {"why": one["message"] or one["stop_message"]} for one in seen["attempts"]]
        show(tries, as_json=False, columns=columns | {"kept_ms": "Kept (ms)", "why": "Why it ended"})


@job.command("logs")
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print a job's log. With -f the exit code says whether it succeeded. JSON comes as one object a line."""
    for page in _pages(job_id, follow=follow):
        for line in page["lines"]:
            if as_json:
                show_line(line)
            else:
                console.print(escape(line["text"]), highlight=False, soft_wrap=True)
    if follow:
        ended = call("GET", f"/api/jobs/{job_id}")
        if as_json:
            show_line({name: ended[name] for name in ("id", "state", "message")})
        else:
            console.print(f"[bold]{ended['state']}[/bold] {escape(ended['message'] or '')}")
        raise typer.Exit(0 if ended["state"] == "succeeded" else REFUSED)


@job.command("cancel")
def cancel(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Stop a job, whatever it is doing."""
    seen = call("POST", f"/api/jobs/{job_id}/cancel")
    show(seen if as_json else priced(seen), as_json=as_json, columns=JOB_COLUMNS)


def _pages(job_id: str, *, follow: bool) -> Iterator[Mapping[str, Any]]:
    cursor = "0-0"
    while True:
        query = {"after": cursor, "wait_seconds": FOLLOW_SECONDS if follow else 0}
        page = call("GET", f"/api/jobs/{job_id}/logs", params=query)
        yield page
        cursor = page["cursor"]
        if page["over"] or not (follow or page["lines"]):
            return


def request(
    recipe: str,
    pools: Sequence[str],
    params: Sequence[str] | None,
    files: Sequence[str] | None,
    workers: str,
    shape: Mapping[str, Any],
    qos: str,
    priority: int,
    max_runtime: int | None,
    project: str | None,
) -> dict[str, Any]:
    """The body of a request for work."""
    inputs = [{"name": name, "source_id": source} for name, source in (_pair(text, "input") for text in files or ())]
    return {
        "recipe": recipe,
        "params": {name: _value(text) for name, text in (_pair(text, "param") for text in params or ())},
        "inputs": inputs,
        "pools": [names if len(names) > 1 else names[0] for names in (text.split(",") for text in pools)],
        **_gang(workers),
        **shape,
        "qos": qos,
        "priority": priority,
        "max_runtime_seconds": max_runtime,
        "project_id": project,
    }


def wishes(name: str | None, deadline: str | None, duration: int | None) -> dict[str, Any]:
    """What its owner says of its time."""
    if deadline is not None:
        try:
            deadline = datetime.fromisoformat(deadline).astimezone().isoformat()
        except ValueError:
            wrong_usage(f"--deadline {deadline!r} is not a time like 2026-12-01T18:00+08:00")
    return {"name": name, "deadline": deadline, "expected_seconds": duration}


def _gang(text: str) -> dict[str, int]:
    """`4`, or `2..8` for an elastic gang."""
    least, dots, most = text.partition("..")
    if not (least.isdigit() and (most.isdigit() if dots else not most)):
        wrong_usage(f"--workers {text!r} is neither a number nor a range like 2..8")
    return {"workers_min": int(least), "workers": int(most)} if dots else {"workers": int(least)}


def _pair(text: str, what: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        wrong_usage(f"--{what} {text!r} is not name=value")
    return name, value


def _value(text: str) -> Any:
    """What was typed as JSON, or as text where it is none; @file reads the value from a file."""
    if text.startswith("@"):
        path = Path(text[1:])
        if not path.is_file():
            wrong_usage(f"there is no file {path}")
        text = path.read_text()
    try:
        return json.loads(text)
    except ValueError:
        return text


def edges(afters: Sequence[str] | None) -> list[dict[str, str]]:
    """What to wait for, and how it has to end."""
    parts = [text.partition(":") for text in afters or ()]
    return [{"id": id, "rule": rule or "ok"} for id, _, rule in parts]


def yuan(text: str | None) -> int | None:
    """Micro-yuan of an amount in yuan."""
    if text is None:
        return None
    try:
        return int(parse_yuan(text))
    except Exception as error:
        wrong_usage(str(error))


def priced(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with every `…_micro_yuan` shown as yuan under its short name."""
    return {
        name.removesuffix("_micro_yuan"): format_yuan(value)
        if name.endswith("_micro_yuan") and value is not None
        else value
        for name, value in row.items()
    } | ({"shape": shown(row)} if "spread" in row else {})
