"""`heliu job why`: the rule that holds a job and what would move it; of what is placed, how its place scored."""

from collections.abc import Mapping
from typing import Any

import typer
from rich.markup import escape

from kit.cli import JsonFlag, call, console, show
from scheduler.cli_jobs import JobId, job

app = typer.Typer()

SCORE_COLUMNS = {
    "which": "", "node": "Node", "total": "Score", "packing": "Packing", "model": "Model", "data": "Data",
}  # fmt: skip


@job.command("why")
def why(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Which rule holds a job, what would let it start, and when; why it was placed where it is."""
    told = call("GET", f"/api/jobs/{job_id}/why")
    if as_json:
        show(told, as_json=True)
        return
    console.print(escape(told["sentence"]), highlight=False)
    if told["reason"]:
        about = "an estimate" if told["estimated"] else "from the timeline"
        start = f"{told['expected_start']} ({about})" if told["expected_start"] else "nothing known lets it start"
        facts = {
            "Rule": told["reason"],
            "It would start with": told["would_start"],
            "Expected start": start,
            "Place in the queue": f"{told['position']} of {told['waiting']}" if told["position"] else None,
            "It stands": told["standing"],
        }
        show(facts, as_json=False)
    if told["score"]:
        _show_scores(told["pool"], told["score"])


def _show_scores(pool: str, score: Mapping[str, Any]) -> None:
    rows = [{"which": "chosen"} | score["best"]]
    rows += [{"which": "next best"} | score["second"]] if score["second"] else []
    show(rows, as_json=False, columns=SCORE_COLUMNS)
    console.print(f"in {pool}, in thousandths of an accelerator; model and data from 0 to 1", highlight=False)
    if score["tariff"] is not None:
        console.print(f"its price counts {score['tariff']:g} of 1 beside the pools liked as much", highlight=False)
