"""Act 8: a CSV of twenty prompts through the model, as a job; JSONL comes back."""

import csv
import json
from textwrap import shorten

from heliu.client.job_views import JobDetail
from heliu.demo.act4_quote import EXAMPLES
from heliu.demo.progress import follow, how_it_ended
from heliu.demo.story import BASE_MODEL, POOL, Story
from kit.units import format_yuan

PROMPTS = EXAMPLES / "prompts.csv"
RESULTS = "results.jsonl"
NEW_TOKENS = 24
SHOWN = 3
ANSWER_CHARS = 80


def batch_runs(story: Story) -> JobDetail:
    """Submit, follow, read the results; the job as it then stands."""
    stage, jobs = story.stage, story.developer.jobs
    upload = story.developer.files.upload(PROMPTS)
    job = jobs.submit(
        "text-batch",
        name="Twenty prompts",
        pools=[POOL],
        inputs={PROMPTS.name: upload.id},
        params={"model": BASE_MODEL, "max_new_tokens": NEW_TOKENS},
        idempotency_key=f"demo-batch-{story.firm_id}-{story.cast.runs}",
    )
    stage.did(f"text-batch on {PROMPTS.name} submitted", job.id)
    follow(story, job.id, doing="answering")
    done = jobs.get(job.id)
    stage.must(done.state == "succeeded", how_it_ended(done))
    _results(story, done)
    stage.did(f"it cost {format_yuan(done.charged_micro_yuan)}")
    return done


def _results(story: Story, job: JobDetail) -> None:
    (stored,) = [artifact for artifact in job.artifacts if artifact.name == RESULTS]
    rows = [json.loads(line) for line in story.developer.files.download(stored.id).decode().splitlines()]
    with PROMPTS.open(encoding="utf-8", newline="") as file:
        asked = [row["id"] for row in csv.DictReader(file)]
    story.stage.check([row["id"] for row in rows] == asked, f"{RESULTS} answers all {len(asked)} prompts in order")
    for row in rows[:SHOWN]:
        story.stage.did(f"{row['id']}: {row['prompt']}", shorten(row["text"], ANSWER_CHARS, placeholder=" …"))
