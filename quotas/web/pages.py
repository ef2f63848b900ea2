"""The one page people see before there is anybody who could sign in: the administrator's one-time link."""

from typing import Annotated

from fastapi import APIRouter, Form, Query
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, select_autoescape
from pydantic import ValidationError

from kit.errors import HeliuError, InvalidInput
from kit.web import status_of
from quotas import members
from quotas.sessions import PASSWORD_LENGTH, SignedIn
from quotas.web.deps import Db, Now, Origin
from quotas.web.schemas import ClaimIn, SessionOut

router = APIRouter(tags=["administrator"])

_pages = Environment(loader=PackageLoader("quotas.web"), autoescape=select_autoescape())
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
}


@router.post("/api/admin/claim", status_code=201)
async def claim(body: ClaimIn, db: Db, now: Now, origin: Origin) -> SessionOut:
    """Use the one-time link from a program: become an administrator and be signed in."""
    return SessionOut.model_validate(await _claim(body, db, now, origin))


@router.get("/admin/claim", include_in_schema=False)
async def claim_page(db: Db, now: Now, token: Annotated[str, Query(max_length=200)] = "") -> HTMLResponse:
    """The page behind the one-time link. Looking at it does not use the link."""
    try:
        async with db.transaction() as tx:
            await members.check_admin_link(tx, token, now=now)
    except HeliuError as refusal:
        return _page(status_of(refusal), refusal=f"{refusal.message} {refusal.hint or ''}")
    return _page(200, token=token)


@router.post("/admin/claim", include_in_schema=False)
async def claim_form(
    db: Db,
    now: Now,
    origin: Origin,
    token: Annotated[str, Form(max_length=200)],
    email: Annotated[str, Form(max_length=254)],
    name: Annotated[str, Form(max_length=100)],
    password: Annotated[str, Form(max_length=PASSWORD_LENGTH[1])],
) -> HTMLResponse:
    """What the page sends."""
    typed = {"token": token, "email": email, "name": name}
    try:
        body = ClaimIn.model_validate({**typed, "password": password})
        await _claim(body, db, now, origin)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        return _page(422, refusal=f"{first['loc'][0]}: {first['msg']}", **typed)
    except InvalidInput as wrong:
        return _page(422, refusal=wrong.message, **typed)
    except HeliuError as refusal:
        return _page(status_of(refusal), refusal=f"{refusal.message} {refusal.hint or ''}")
    return _page(201, done=True, email=body.email)


async def _claim(body: ClaimIn, db: Db, now: Now, origin: Origin) -> SignedIn:
    return await members.claim_admin_link(
        db,
        body.token.get_secret_value(),
        email=body.email,
        name=body.name,
        password=body.password.get_secret_value(),
        now=now,
        origin=origin,
    )


def _page(status: int, **values: object) -> HTMLResponse:
    empty = {"token": "", "email": "", "name": "", "refusal": "", "done": False}
    lengths = {"shortest": PASSWORD_LENGTH[0], "longest": PASSWORD_LENGTH[1]}
    content = _pages.get_template("claim.html").render({**empty, **lengths, **values})
    return HTMLResponse(content, status, _HEADERS)
