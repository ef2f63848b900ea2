"""`heliu array`: many tasks of one shape."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call, console, show, wrong_usage
from scheduler import cli_jobs
from scheduler.cli_jobs import JOB_COLUMNS, priced
from scheduler.cli_shapes import Cpus, Gpus, Memory, SpreadOption, Topology, shape_of

app = typer.Typer()
array = typer.Typer(help="Job arrays: submit, list, show, tasks, logs, rerun, cancel.", no_args_is_help=True)
app.add_typer(array, name="array")

ARRAY_COLUMNS = {
    "id": "Array", "name": "Name", "recipe": "Recipe", "state": "State", "size": "Tasks", "waiting": "Waiting",
    "stand": "Others", "held_detail": "Held by", "charged": "Charged",
}  # fmt: skip

ArrayId = Annotated[str, typer.Argument(help="An array's id (arr_…).")]
Index = Annotated[int, typer.Argument(min=0, help="A task's number, from 0.")]


@array.command("submit")
def submit(
    recipe: cli_jobs.Recipe,
    pool: cli_jobs.Pools,
    size: Annotated[int, typer.Option(min=1, max=100_000, help="How many tasks.")],
    at_most: Annotated[int, typer.Option(min=1, max=1_000, help="Tasks under way at once.")] = 50,
    param: cli_jobs.Params = None,
    file: cli_jobs.Inputs = None,
    workers: cli_jobs.Workers = "1",
    gpus: Gpus = 1,
    cpus: Cpus = 0,
    memory: Memory = "0",
    spread: SpreadOption = "same_centre",
    topology: Topology = None,
    qos: cli_jobs.QosOption = "standard",
    priority: cli_jobs.Priority = 0,
    max_runtime: cli_jobs.MaxRuntime = None,
    deadline: cli_jobs.Deadline = None,
    duration: cli_jobs.Duration = None,
    project: cli_jobs.Project = None,
    name: cli_jobs.Name = None,
    cap: Annotated[str | None, typer.Option(help="Stop a task when it has spent this many yuan.")] = None,
    retries: Annotated[int, typer.Option(min=0, max=10, help="Tries after an error of its own; each is charged.")] = 0,
    key: Annotated[str | None, typer.Option("--key", help="Idempotency key: twice the same makes one array.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Submit an array. `{index}` in a parameter is the task's number, HELIU_TASK_INDEX says it to a script."""
    shape = shape_of(gpus, cpus, memory, spread, topology)
    body = cli_jobs.request(recipe, pool, param, file, workers, shape, qos, priority, max_runtime, project)
    body |= cli_jobs.wishes(name, deadline, duration) | {"cap_micro_yuan": cli_jobs.yuan(cap), "retries": retries}
    body |= {"size": size, "at_most": at_most}
    _told(call("POST", "/api/arrays", json=body, headers={"Idempotency-Key": key} if key else {}), as_json=as_json)


@array.command("list")
def list_arrays(as_json: JsonFlag = False) -> None:
    """List your firm's arrays, newest first."""
    rows = call("GET", "/api/arrays")
    show(rows if as_json else [_counted(row) for row in rows], as_json=as_json, columns=ARRAY_COLUMNS)


@array.command("show")
def show_array(array_id: ArrayId, as_json: JsonFlag = False) -> None:
    """Where an array's tasks stand, and what they cost."""
    _told(call("GET", f"/api/arrays/{array_id}"), as_json=as_json)


@array.command("tasks")
def tasks(
    array_id: ArrayId,
    state: Annotated[list[str] | None, typer.Option(help="Only these states.")] = None,
    after: Annotated[int, typer.Option(help="Those after this number.")] = -1,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List the tasks that became jobs, by number."""
    query: dict[str, Any] = {"state": state or [], "after": after, "limit": limit}
    rows = call("GET", f"/api/arrays/{array_id}/tasks", params=query)
    columns = {"array_index": "Task"} | JOB_COLUMNS
    show(rows if as_json else [priced(row) for row in rows], as_json=as_json, columns=columns)


@array.command("logs")
def logs(array_id: ArrayId, index: Index, as_json: JsonFlag = False) -> None:
    """Print the log of a task's last run."""
    rows = call("GET", f"/api/arrays/{array_id}/tasks", params={"index": index})
    if not rows:
        wrong_usage(f"task {index} of {array_id} has not had its turn yet")
    cli_jobs.logs(rows[0]["id"], as_json=as_json)


@array.command("rerun")
def rerun(array_id: ArrayId, as_json: JsonFlag = False) -> None:
    """Give the tasks whose last run failed another turn."""
    told = call("POST", f"/api/arrays/{array_id}/rerun")
    if as_json:
        show(told, as_json=True)
    else:
        console.print(f"{told['tasks']} tasks are run again", highlight=False)


@array.command("cancel")
def cancel(array_id: ArrayId, as_json: JsonFlag = False) -> None:
    """No further task gets its turn; those under way are stopped."""
    _told(call("POST", f"/api/arrays/{array_id}/cancel"), as_json=as_json)


def _told(row: Mapping[str, Any], *, as_json: bool) -> None:
    show(row if as_json else _counted(row), as_json=as_json, columns=ARRAY_COLUMNS)


def _counted(row: Mapping[str, Any]) -> dict[str, Any]:
    stand = ", ".join(f"{number} {state}" for state, number in sorted(row["counts"].items()))
    return priced(row) | {"stand": stand}
