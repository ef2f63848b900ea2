"""Quotes, jobs, uploads, artifacts, pools."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from heliu.client.job_views import Artifact, Event, Job, JobDetail, LogLine, Pool, Quote, Upload
from heliu.client.transport import Transport, new_idempotency_key

PART_BYTES = 8 << 20
FOLLOW_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Jobs:
    """Work that ends."""

    _transport: Transport

    def quote(self, recipe: str, *, pools: Sequence[str], inputs: Mapping[str, str], **what: Any) -> Quote:
        """Price, who pays, expected start and finish. `inputs`: file name → upload or artifact id."""
        body = _request(recipe, pools, inputs, what)
        return Quote(**self._transport.json("POST", "/api/quotes", body=body))

    def submit(
        self,
        recipe: str,
        *,
        pools: Sequence[str],
        inputs: Mapping[str, str],
        idempotency_key: str | None = None,
        **what: Any,
    ) -> Job:
        """Submit a job; `what`: params, name, quote_id, priority, max_runtime_seconds, qos, gpus, workers, and more.

        Also expected_seconds, deadline, workers_min, cap_micro_yuan, retries, after: see docs/jobs.md.
        Sent twice under one idempotency key it is one job; without a key every call is a job of its own.
        """
        body = _request(recipe, pools, inputs, what)
        key = idempotency_key or new_idempotency_key()
        return Job(**self._transport.json("POST", "/api/jobs", body=body, idempotency_key=key))

    def get(self, job_id: str) -> JobDetail:
        """A job with its attempts and what it made."""
        return JobDetail(**self._transport.json("GET", f"/api/jobs/{job_id}"))

    def cancel(self, job_id: str) -> Job:
        """Stop it."""
        return Job(**self._transport.json("POST", f"/api/jobs/{job_id}/cancel"))

    def pause(self, job_id: str) -> Job:
        """Lay it aside; what it has run is charged."""
        return Job(**self._transport.json("POST", f"/api/jobs/{job_id}/pause"))

    def resume(self, job_id: str) -> Job:
        """Queue it again; it goes on from its last checkpoint."""
        return Job(**self._transport.json("POST", f"/api/jobs/{job_id}/resume"))

    def events(self, job_id: str) -> Iterator[Event]:
        """What happens to it, as it happens; ends with the job."""
        cursor: str | None = None
        while True:
            query = {"after": cursor, "wait_seconds": FOLLOW_SECONDS}
            page = self._transport.json("GET", f"/api/jobs/{job_id}/events", query=query)
            yield from (Event(**event) for event in page["events"])
            cursor = page["cursor"]
            if page["over"]:
                return

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[LogLine]:
        """Its log; with `follow` until it is over."""
        cursor: str | None = None
        while True:
            query = {"after": cursor, "wait_seconds": FOLLOW_SECONDS if follow else 0}
            page = self._transport.json("GET", f"/api/jobs/{job_id}/logs", query=query)
            yield from (LogLine(**line) for line in page["lines"])
            cursor = page["cursor"]
            if page["over"] or not (follow or page["lines"]):
                return

    def wait(self, job_id: str, *, seconds: float = 3600) -> JobDetail:
        """The job once it is over. Raises TimeoutError after `seconds`."""
        deadline = monotonic() + seconds
        cursor: str | None = None
        while monotonic() < deadline:
            left = max(0, min(FOLLOW_SECONDS, int(deadline - monotonic())))
            query = {"after": cursor, "wait_seconds": left}
            page = self._transport.json("GET", f"/api/jobs/{job_id}/events", query=query)
            cursor = page["cursor"]
            if page["over"]:
                return self.get(job_id)
        raise TimeoutError(f"job {job_id} is not over after {seconds:.0f} s; it is {self.get(job_id).state}")

    def list(self) -> list[Job]:
        """The firm's jobs, newest first."""
        return [Job(**row) for row in self._transport.json("GET", "/api/jobs")]


@dataclass(frozen=True, slots=True)
class Files:
    """Uploads and artifacts."""

    _transport: Transport

    def upload(self, path: Path, *, name: str | None = None) -> Upload:
        """Send a file; one of which parts are there already is continued where it stopped."""
        content_hash, size = _sha256(path), path.stat().st_size
        body = {"name": name or path.name, "size_bytes": size, "sha256": content_hash}
        upload = self._standing(body) or Upload(**self._transport.json("POST", "/api/uploads", body=body))
        with path.open("rb") as file:
            while upload.received_bytes < size:
                file.seek(upload.received_bytes)
                upload = self._send(upload, file.read(PART_BYTES))
        return Upload(**self._transport.json("POST", f"/api/uploads/{upload.id}/complete", idempotency_key=upload.id))

    def download(self, artifact_id: str) -> bytes:
        """The content of an artifact."""
        return self._transport.call("GET", f"/api/artifacts/{artifact_id}/content").content

    def artifacts(self) -> list[Artifact]:
        """The firm's artifacts, newest first."""
        return [Artifact(**row) for row in self._transport.json("GET", "/api/artifacts")]

    def _send(self, upload: Upload, part: bytes) -> Upload:
        headers = {"Upload-Offset": str(upload.received_bytes), "Content-Type": "application/octet-stream"}
        path = f"/api/uploads/{upload.id}"
        return Upload(**self._transport.json("PATCH", path, content=part, headers=headers))

    def _standing(self, wanted: Mapping[str, Any]) -> Upload | None:
        known = (Upload(**row) for row in self._transport.json("GET", "/api/uploads"))
        same = (one for one in known if (one.name, one.sha256) == (wanted["name"], wanted["sha256"]))
        return next(same, None)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where work can run."""

    _transport: Transport

    def pools(self) -> list[Pool]:
        """Pools with what is up and placed, and the caller's own quota in each."""
        return [Pool(**row) for row in self._transport.json("GET", "/api/pools")]


def _request(recipe: str, pools: Sequence[str], inputs: Mapping[str, str], what: Mapping[str, Any]) -> dict[str, Any]:
    files = [{"name": name, "source_id": source} for name, source in inputs.items()]
    return {"recipe": recipe, "pools": list(pools), "inputs": files, **what}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
