"""A job as a progress bar: what it does at the moment, in words, and how far it is."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from heliu.client.job_views import Event
from heliu.demo.story import Story

WORDS = {
    "job.submitted": "in the queue",
    "job.starting": "placed on a node, starting",
    "job.running": "running, loading the model",
    "job.requeued": "back in the queue",
    "job.stopping": "stopping",
    "job.succeeded": "done",
    "job.failed": "failed",
    "job.cancelled": "cancelled",
}
"""What an event of a job is called in front of a person."""


def follow(story: Story, job_id: str, *, doing: str) -> None:
    """Show the job until it is over; `doing` is the word for its steps."""
    columns = (
        TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=story.stage.console) as progress:
        task = progress.add_task(WORDS["job.submitted"], total=None, loss="")
        for event in story.developer.jobs.events(job_id):
            show(progress, task, event, doing=doing)


def show(progress: Progress, task: TaskID, event: Event, *, doing: str) -> None:
    """Bring the bar up to an event; what a job's events do not name changes nothing."""
    body = event.body
    if event.topic == "job.progress":
        loss = body.get("metrics", {}).get("loss")
        shown = "" if loss is None else f"loss {loss:.3f}"
        progress.update(task, description=doing, completed=body["step"], total=body.get("total_steps"), loss=shown)
    elif event.topic == "job.waiting":
        progress.update(task, description=f"waits: {body.get('detail') or body.get('reason')}")
    elif event.topic in WORDS:
        progress.update(task, description=WORDS[event.topic])
