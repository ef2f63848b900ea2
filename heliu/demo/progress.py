"""A job as a progress bar: what it does at the moment, in words, and how far it is. In a log: a line now and then."""

from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from heliu.client.job_views import Event, JobDetail
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
LINES_OF_STEPS = 5


@dataclass(frozen=True, slots=True)
class Moment:
    """What a job does; `step` of `total` where it takes steps."""

    words: str
    step: int | None = None
    total: int | None = None
    loss: str = ""


def moment(event: Event, *, doing: str) -> Moment | None:
    """What an event says about the job, `doing` being the word for its steps; None when it says nothing new."""
    body = event.body
    if event.topic == "job.progress":
        loss = body.get("metrics", {}).get("loss")
        return Moment(doing, body["step"], body.get("total_steps"), "" if loss is None else f"loss {loss:.3f}")
    if event.topic == "job.waiting":
        return Moment(f"waits: {body.get('detail') or body.get('reason')}")
    return Moment(WORDS[event.topic]) if event.topic in WORDS else None


def follow(story: Story, job_id: str, *, doing: str) -> None:
    """Show the job until it is over."""
    console = story.stage.console
    moments = (moment(event, doing=doing) for event in story.developer.jobs.events(job_id))
    if not console.is_terminal:
        shown = Lines(console)
        for now in moments:
            shown.tell(now)
        return
    columns = (
        TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(WORDS["job.submitted"], total=None, loss="")
        for now in moments:
            advance(progress, task, now)


def how_it_ended(job: JobDetail) -> str:
    """A job that is over, in words."""
    return "the job succeeded" if job.state == "succeeded" else f"the job is {job.state}: {job.message}"


def advance(progress: Progress, task: TaskID, now: Moment | None) -> None:
    """Bring the bar up to a moment."""
    if now is None:
        return
    progress.update(task, description=now.words)
    if now.step is not None:
        progress.update(task, completed=now.step, total=now.total, loss=now.loss)


class Lines:
    """A line for each change of words, and for a fifth of the steps."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._words = ""
        self._step = 0

    def tell(self, now: Moment | None) -> None:
        """Print the moment when it is worth a line."""
        if now is None:
            return
        if now.step is None:
            if now.words != self._words:
                self._console.print(f"  … {now.words}", markup=False, highlight=False)
        elif now.total is None or now.step == now.total or now.step - self._step >= now.total / LINES_OF_STEPS:
            self._step = now.step
            self._console.print(f"  … {now.words}: {now.step}/{now.total or '?'} {now.loss}".rstrip(), highlight=False)
        self._words = now.words
