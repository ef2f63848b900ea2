"""What routes ask for: the database, the time, who is calling and from where.

The composition puts `db` (kit.db.Database) and `clock` (kit.clock.Clock) on `app.state`.
"""

from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from kit.auth import Principal
from kit.db import Database
from kit.errors import Unauthenticated
from kit.web import bearer_of
from quotas.authentication import authenticate

# Only for the lock in /docs: the token itself is read by kit.web.bearer_of.
_scheme = HTTPBearer(auto_error=False, description="a session (hs_…) or an API key (hl_…)")


def db_of(request: Request) -> Database:
    """The database of this process."""
    db: Database = request.app.state.db
    return db


def now_of(request: Request) -> datetime:
    """The instant this request is decided at."""
    now: datetime = request.app.state.clock.now()
    return now


def origin_of(request: Request) -> str | None:
    """The address a request came from, for limits and the audit log."""
    return request.client.host if request.client else None


Db = Annotated[Database, Depends(db_of)]
Now = Annotated[datetime, Depends(now_of)]
Origin = Annotated[str | None, Depends(origin_of)]


def required_bearer(request: Request, _lock: Annotated[object, Security(_scheme)]) -> str:
    """The token of the request. Raises Unauthenticated when it carries none."""
    bearer = bearer_of(request)
    if bearer is None:
        raise Unauthenticated(
            "This needs a session or an API key.", hint="Send the header 'Authorization: Bearer …'; heliu login does."
        )
    return bearer


async def _principal(bearer: "BearerToken", db: Db, now: Now, origin: Origin) -> Principal:
    async with db.transaction() as tx:
        return await authenticate(tx, bearer, now=now, ip=origin)


async def _signed_in(bearer: "BearerToken", db: Db, now: Now, origin: Origin) -> Principal:
    async with db.transaction() as tx:
        return await authenticate(tx, bearer, now=now, ip=origin, inactive_ok=True)


BearerToken = Annotated[str, Depends(required_bearer)]
CurrentPrincipal = Annotated[Principal, Depends(_principal)]
"""Who is calling; refused for a firm that is not active."""
SignedInPrincipal = Annotated[Principal, Depends(_signed_in)]
"""Who is calling, also while the firm waits for approval or is suspended: to see why, and to sign out."""
