"""The node protocol's server (scheduler/node/protocol.py): translate, nothing else."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import InvalidInput, NotFound, TooLarge
from kit.together import Together
from kit.web import bearer_of, chunks_of
from quotas.api import Db, Now
from scheduler import artifacts, attempts, checkpoints, reports
from scheduler.adapters import store
from scheduler.attempts import authenticate_attempt
from scheduler.node.protocol import (
    HEADER_KIND,
    HEADER_META,
    HEADER_RAN_MS,
    HEADER_RUNNER,
    HEADER_SHA256,
    HEADER_STEP,
    META_BYTES_MAX,
    CheckpointOut,
    FinishedIn,
    HeartbeatIn,
    HeartbeatOut,
    LeaseOut,
    OutputKind,
    OutputOut,
    Plan,
    StartedIn,
    plain_name,
)
from scheduler.vocabulary import AttemptIdentity, AttemptState, EndCause
from scheduler.web.edge import EdgeOf

REPORT_BYTES_MAX = 16 << 20
NUMBER_MAX = 2**53
ENDS_APART_SECONDS = 0.02  # a group costs what twenty single ends add to it
_LOST = (EndCause.LEASE_LOST, EndCause.NODE_LOST)


class BoundedRoute(APIRoute):
    """The app does not limit bodies under this prefix, because outputs are large: everything else is limited here."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse a body that is too long, or does not say how long it is, before reading it."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            if request.method == "POST":
                declared = request.headers.get("content-length", "")
                if not declared.isdigit():
                    raise InvalidInput("a report says its Content-Length", code="length_required")
                if int(declared) > REPORT_BYTES_MAX:
                    raise TooLarge(f"a report has at most {REPORT_BYTES_MAX} bytes")
            return await handle(request)

        return bounded


router = APIRouter(
    prefix="/internal/v1/attempts/{attempt_id}", route_class=BoundedRoute, include_in_schema=False, tags=["internal"]
)


async def identity_of(attempt_id: str, request: Request, db: Db, now: Now) -> AttemptIdentity:
    """Whose token the request carries; the path has to name the same attempt."""
    async with db.transaction() as tx:
        identity = await authenticate_attempt(tx, bearer_of(request), now=now)
    if identity.attempt_id != attempt_id:
        raise NotFound("There is no such attempt.", code="attempt_not_found")
    return identity


Runner = Annotated[AttemptIdentity, Depends(identity_of)]


@router.get("/plan")
async def get_plan(
    identity: Runner,
    db: Db,
    now: Now,
    edge: EdgeOf,
    x_runner: Annotated[str, Header(alias=HEADER_RUNNER, max_length=100)] = "",
) -> Plan:
    """Claim the attempt."""
    async with db.transaction() as tx:
        return await reports.plan(tx, identity, x_runner, terms=edge.terms, now=now)


@router.post("/started")
async def post_started(_: StartedIn, identity: Runner, db: Db, now: Now, edge: EdgeOf) -> LeaseOut:
    """The program has started."""
    async with db.transaction() as tx:
        await attempts.begin(tx, identity, terms=edge.terms, now=now)
    return LeaseOut(lease_seconds=edge.terms.lease_seconds)


@router.post("/heartbeat")
async def post_heartbeat(report: HeartbeatIn, identity: Runner, db: Db, now: Now, edge: EdgeOf) -> HeartbeatOut:
    """The runner is alive."""
    async with db.transaction() as tx:
        return await reports.heartbeat(tx, identity, report, terms=edge.terms, now=now)


Finished = tuple[AttemptIdentity, FinishedIn]


def finishing_of(request: Request, db: Db, edge: EdgeOf) -> Together[Finished, bool]:
    """Ends that are reported at the same time are written together; the answer is whether the attempt was heard."""
    state = request.app.state

    async def write(reported: Sequence[Finished]) -> list[bool]:
        async def work(tx: AsyncSession) -> set[AttemptIdentity]:
            return await reports.finished_many(tx, dict(reported), terms=edge.terms, now=state.clock.now())

        heard = await db.retrying(work)
        return [identity in heard for identity, _ in reported]

    if not hasattr(state, "finishing"):
        state.finishing = Together[Finished, bool](write, apart=ENDS_APART_SECONDS)
    return state.finishing


Finishing = Annotated[Together[Finished, bool], Depends(finishing_of)]


@router.post("/finished")
async def post_finished(
    attempt_id: str, report: FinishedIn, request: Request, db: Db, now: Now, finishing: Finishing
) -> dict[str, Any]:
    """The attempt is over. Saying so again changes nothing; after it was given up for lost it is too late."""
    async with db.transaction() as tx:
        known = await attempts.check_token(tx, bearer_of(request))
        if known.id == attempt_id and known.state == AttemptState.ENDED and known.cause not in _LOST:
            return {}
    identity = await identity_of(attempt_id, request, db, now)
    if not await finishing.put((identity, report)):
        raise attempts.fence_lost()
    return {}


@router.get("/inputs/{name:path}")
async def get_input(name: str, identity: Runner, db: Db, edge: EdgeOf, request: Request) -> StreamingResponse:
    """Bytes of an input; `Range: bytes=N-` continues."""
    async with db.transaction() as tx:
        found = {row.name: row for row in await store.inputs(tx, identity.workload_id)}.get(name)
    if found is None:
        raise NotFound(f"There is no input {name}.", code="input_not_found")
    start = range_start(request, found.size_bytes)
    return stream(edge.blobs.read(found.blob, start=start), found.size_bytes, start)


@router.put("/outputs/{name:path}")
async def put_output(name: str, request: Request, identity: Runner, db: Db, now: Now, edge: EdgeOf) -> OutputOut:
    """Store an output."""
    kind, meta, sha256 = _output_headers(request)
    try:
        name = plain_name(name)
    except ValueError as error:
        raise InvalidInput(str(error), code="bad_file_name") from None
    stored = await artifacts.store_output(
        db, edge.blobs, identity, name, kind, meta, chunks_of(request), sha256=sha256, terms=edge.terms, now=now
    )
    return OutputOut(artifact_id=stored.id, sha256=stored.sha256, bytes=stored.size_bytes)


@router.put("/checkpoint")
async def put_checkpoint(request: Request, identity: Runner, db: Db, now: Now, edge: EdgeOf) -> CheckpointOut:
    """Keep what the program has done so far, in place of what it kept before."""
    row = await checkpoints.keep(
        db,
        edge.blobs,
        identity,
        chunks_of(request),
        sha256=_sha256(request),
        step=_number(request, HEADER_STEP),
        ran_ms=_number(request, HEADER_RAN_MS),
        terms=edge.terms,
        now=now,
    )
    return CheckpointOut(sha256=row.sha256, bytes=row.size_bytes)


@router.get("/checkpoint")
async def get_checkpoint(identity: Runner, db: Db, edge: EdgeOf, request: Request) -> StreamingResponse:
    """Bytes of what the attempt before kept; `Range: bytes=N-` continues."""
    async with db.transaction() as tx:
        found = await checkpoints.open_checkpoint(tx, identity)
    start = range_start(request, found.size_bytes)
    return stream(edge.blobs.read(found.blob, start=start), found.size_bytes, start)


def range_start(request: Request, size: int) -> int:
    """N of `Range: bytes=N-`, or 0 for a request for everything; other ranges are answered with everything."""
    unit, _, span = request.headers.get("range", "").partition("=")
    first = span.removesuffix("-")
    is_number = first.isascii() and first.isdigit() and len(first) <= 19
    return int(first) if unit == "bytes" and is_number and 0 < int(first) < size else 0


def stream(
    chunks: AsyncIterator[bytes], size: int, start: int, headers: dict[str, str] | None = None
) -> StreamingResponse:
    """Bytes from `start` on, as 200 or 206."""
    told = {"Content-Length": str(size - start), "Accept-Ranges": "bytes", **(headers or {})}
    if start:
        told["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    return StreamingResponse(chunks, 206 if start else 200, told, media_type="application/octet-stream")


def _output_headers(request: Request) -> tuple[OutputKind, dict[str, Any], str]:
    sha256, raw = _sha256(request), request.headers.get(HEADER_META, "{}")
    try:
        kind = OutputKind(request.headers.get(HEADER_KIND, OutputKind.FILE))
        meta = json.loads(raw) if len(raw) <= META_BYTES_MAX else None
    except ValueError:
        raise InvalidInput(f"{HEADER_KIND} or {HEADER_META} is not understood", code="bad_output_headers") from None
    if not isinstance(meta, dict):
        raise InvalidInput(
            f"{HEADER_META} is a JSON object of {META_BYTES_MAX} bytes at most", code="bad_output_headers"
        )
    return kind, meta, sha256


def _sha256(request: Request) -> str:
    sha256 = request.headers.get(HEADER_SHA256, "").lower()
    if len(sha256) != 64 or any(digit not in "0123456789abcdef" for digit in sha256):
        raise InvalidInput(f"{HEADER_SHA256} is the SHA-256 in hexadecimal", code="bad_sha256")
    return sha256


def _number(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= NUMBER_MAX):
        raise InvalidInput(f"{header} is a number from 0 to {NUMBER_MAX}", code="bad_number")
    return int(text)
