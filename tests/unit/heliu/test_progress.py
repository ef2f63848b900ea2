"""What the demo says of a running job: words for every event, a line now and then where there is no terminal."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from heliu.client.job_views import Event
from heliu.demo.progress import Lines, moment


def event(topic: str, **body: Any) -> Event:
    return Event(cursor="1-0", at=datetime(2026, 11, 2, tzinfo=UTC), topic=topic, body=body)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (event("job.submitted"), "in the queue"),
        (event("job.waiting", reason="no_room", detail="no slot is free"), "waits: no slot is free"),
        (event("job.running"), "running, loading the model"),
        (event("job.progress", step=3, total_steps=30, metrics={"loss": 1.25}), "training"),
        (event("job.succeeded"), "done"),
    ],
)
def test_what_happens_to_a_job_is_said_in_words(said: Event, words: str) -> None:
    now = moment(said, doing="training")
    assert now is not None
    assert now.words == words


@pytest.mark.parametrize("topic", ["workload.ended", "artifact.stored"])
def test_what_is_not_for_people_changes_nothing(topic: str) -> None:
    assert moment(event(topic), doing="training") is None


def test_a_log_gets_a_line_for_each_change_and_for_a_fifth_of_the_steps() -> None:
    told = io.StringIO()
    lines = Lines(Console(file=told, width=100))
    happened = [event("job.submitted"), event("job.running"), event("job.running")]
    happened += [event("job.progress", step=step, total_steps=30, metrics={"loss": 1 / step}) for step in range(1, 31)]
    for one in [*happened, event("workload.ended"), event("job.succeeded")]:
        lines.tell(moment(one, doing="training"))
    assert told.getvalue().splitlines() == [
        "  … in the queue",
        "  … running, loading the model",
        "  … training: 6/30 loss 0.167",
        "  … training: 12/30 loss 0.083",
        "  … training: 18/30 loss 0.056",
        "  … training: 24/30 loss 0.042",
        "  … training: 30/30 loss 0.033",
        "  … done",
    ]
