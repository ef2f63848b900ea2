"""What the routes of job arrays take and give."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from kit.web import View
from scheduler.web.schemas import WorkIn


class ArrayIn(WorkIn):
    size: Annotated[
        int, Field(ge=1, le=100_000, description="how many tasks; each has its own maximum, cap and charge")
    ]
    at_most: Annotated[int, Field(ge=1, le=1_000, description="tasks under way at once")] = 50


class RerunOut(View):
    tasks: int


class ArrayOut(View):
    id: str
    name: str
    firm_id: str
    project_id: str
    recipe: str
    size: int
    at_most: int
    state: str
    waiting: int
    counts: dict[str, int]
    held_detail: str | None
    charged_micro_yuan: int
    submitted_by: str
    created_at: datetime
    ended_at: datetime | None
