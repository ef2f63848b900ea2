"""What the routes of windows take and give."""

from datetime import datetime

from pydantic import AwareDatetime, Field

from kit.web import Body, View
from scheduler.web.schemas import Id, Line
from scheduler.windows import WindowScope


class WindowIn(Body):
    scope: WindowScope
    target: Line = Field(description="a node's id, a pool or a centre")
    starts_at: AwareDatetime
    ends_at: AwareDatetime
    reason: Line
    firm_id: Id | None = Field(default=None, description="only this firm's work may run there; without: nobody's")


class WindowOut(View):
    id: str
    scope: WindowScope
    target: str
    firm_id: str | None
    reason: str
    starts_at: datetime
    ends_at: datetime
