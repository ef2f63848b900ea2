"""Act 5: admitted, placed, trained for real; loss and steps as they come, then the adapter and what it cost."""

from heliu.client.job_views import JobDetail
from heliu.demo.act4_quote import FineTune
from heliu.demo.progress import follow, how_it_ended
from heliu.demo.story import Story
from kit.units import format_yuan

WEIGHTS = "adapter_model.safetensors"
LOG_LINES = 4


def training_runs(story: Story, tune: FineTune) -> JobDetail:
    """Follow the job to its end; the job as it then stands."""
    follow(story, tune.job.id, doing="training")
    job = story.developer.jobs.get(tune.job.id)
    lines = [line.text for line in story.developer.jobs.logs(job.id)]
    for text in lines[-LOG_LINES:]:
        story.stage.did(f"log: {text}")
    story.stage.must(job.state == "succeeded", how_it_ended(job))
    story.stage.check(lines, f"`heliu job logs -f {job.id}` shows {len(lines)} lines")
    _loss_fell(story, job)
    _artifact(story, job)
    _settled(story, job, tune)
    return job


def _loss_fell(story: Story, job: JobDetail) -> None:
    seen = [
        event.body["metrics"]["loss"]
        for event in story.developer.jobs.events(job.id)
        if event.topic == "job.progress" and "loss" in event.body.get("metrics", {})
    ]
    fell = len(seen) >= 2 and seen[-1] < seen[0] / 2
    story.stage.check(fell, f"the loss fell from {seen[0]:.2f} to {seen[-1]:.2f}" if seen else "the loss was reported")


def _artifact(story: Story, job: JobDetail) -> None:
    made = {artifact.name: artifact for artifact in job.artifacts}
    story.stage.must(WEIGHTS in made, f"the adapter is stored ({', '.join(made) or 'nothing was stored'})")
    weights = made[WEIGHTS]
    story.stage.did(f"{weights.name}: {weights.size_bytes:,} bytes", f"{weights.id}, SHA-256 {weights.sha256}")


def _settled(story: Story, job: JobDetail, tune: FineTune) -> None:
    (attempt, *_) = [one for one in job.attempts if one.cause == "done"]
    seconds = (attempt.ran_ms or 0) / 1000
    cost, most = format_yuan(job.charged_micro_yuan), format_yuan(tune.quote.max_micro_yuan)
    story.stage.check(
        0 < job.charged_micro_yuan <= tune.quote.max_micro_yuan,
        f"{seconds:.1f} s on one slot cost {cost}, quoted at {most} at most; the rest of the hold is free again",
    )
