"""What replica hosts call: report and be told, and fetch the adapters they were told to load."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from sqlalchemy.ext.asyncio import AsyncSession

from kit.blobs import Blobs
from kit.errors import NotFound, Unauthenticated
from kit.web import bearer_of
from quotas.api import Db, Now
from scheduler import api as scheduler
from scheduler.vocabulary import AttemptIdentity
from serving import replica_sync
from serving.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from serving.replica_sync import Report
from serving.web.schemas import OrderOut, SyncIn, SyncOut


def attempt_bearer(request: Request) -> str:
    """The attempt token of the request. Raises Unauthenticated when it carries none."""
    bearer = bearer_of(request)
    if bearer is None:
        raise Unauthenticated("this needs an attempt's token")
    return bearer


AttemptBearer = Annotated[str, Depends(attempt_bearer)]


def build_router(blobs: Blobs) -> APIRouter:
    """The routes of /internal/v1/replicas."""
    router = APIRouter(prefix="/internal/v1/replicas/{attempt_id}", include_in_schema=False)

    @router.post("/sync")
    async def sync(attempt_id: str, body: SyncIn, bearer: AttemptBearer, db: Db, now: Now) -> SyncOut:
        report = report_of(body)

        async def work(tx: AsyncSession) -> SyncOut:
            attempt = await identify(tx, attempt_id, bearer, now=now)
            reply = await replica_sync.sync(tx, attempt, report, now=now)
            orders = [
                OrderOut(
                    id=row.id,
                    lora_name=row.id,
                    url=f"/internal/v1/replicas/{attempt_id}/adapters/{row.id}",
                    sha256=row.sha256,
                    bytes=row.size_bytes,
                )
                for row in reply.adapters
            ]
            return SyncOut(command=reply.command.value, adapters=orders, poll_seconds=reply.poll_seconds)

        return await db.retrying(work)

    @router.get("/adapters/{adapter_id}/{file}")
    async def adapter_file(
        attempt_id: str,
        adapter_id: str,
        file: Literal["adapter_config.json", "adapter_model.safetensors"],
        bearer: AttemptBearer,
        db: Db,
        now: Now,
    ) -> Response:
        async with db.transaction() as tx:
            attempt = await identify(tx, attempt_id, bearer, now=now)
            row = await replica_sync.ordered_adapter(tx, attempt, adapter_id)
        if file == CONFIG_FILE:
            return Response(row.config, media_type="application/json")
        assert file == WEIGHTS_FILE and row.weights_artifact is not None, "an ordered adapter has its weights"
        artifact, chunks = await scheduler.open_artifact(db, blobs, row.weights_artifact, firm_id=row.firm_id)
        headers = {"Content-Length": str(artifact.size_bytes), "X-Sha256": artifact.sha256}
        return StreamingResponse(_whole(chunks), media_type="application/octet-stream", headers=headers)

    return router


async def identify(tx: AsyncSession, attempt_id: str, bearer: str, *, now: datetime) -> AttemptIdentity:
    """Whose token this is. Raises NotFound when it is not that attempt's, and what `authenticate_attempt` raises."""
    identity = await scheduler.authenticate_attempt(tx, bearer, now=now)
    if identity.attempt_id != attempt_id:
        raise NotFound("this is not your attempt", code="attempt_not_found")
    return identity


def report_of(body: SyncIn) -> Report:
    """The report as serving's own value."""
    metrics = body.metrics
    return Report(
        state=body.state,
        engine_start=body.engine_start,
        url=body.url,
        engine_key=body.engine_key,
        loading=frozenset(body.adapters_loading),
        loaded=frozenset(body.adapters_loaded),
        failed={failure.id: failure.why for failure in body.adapters_failed},
        counters=replica_sync.as_counters(metrics.model_dump()) if metrics else None,
        requests_running=metrics.requests_running if metrics else 0,
        requests_waiting=metrics.requests_waiting if metrics else 0,
        kv_cache_usage_ppm=metrics.kv_cache_usage_ppm if metrics else 0,
        reason=body.reason,
    )


async def _whole(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
