"""The runner's side of the node protocol over HTTP. It retries nothing itself: callers know how long to insist."""

import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import ValidationError

from scheduler.node.lease import boottime
from scheduler.node.protocol import (
    FENCE_LOST,
    HEADER_KIND,
    HEADER_META,
    HEADER_RAN_MS,
    HEADER_RUNNER,
    HEADER_SHA256,
    HEADER_STEP,
    CheckpointOut,
    FinishedIn,
    HeartbeatIn,
    HeartbeatOut,
    InputFile,
    LeaseOut,
    OutputKind,
    OutputOut,
    Plan,
    StartedIn,
    Wire,
)

_W = TypeVar("_W", bound=Wire)

_CHUNK = 1 << 20
_HEARTBEAT_TIMEOUT = httpx.Timeout(10, connect=3)
_TRANSFER_TIMEOUT = httpx.Timeout(60, connect=5)


class Away(Exception):
    """The control plane does not answer, or not sensibly: ask again later."""


class Denied(Exception):
    """The control plane answered no, and asking again will not change it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{message} ({code}, HTTP {status})")
        self.status = status
        self.code = code


class FenceLost(Denied):
    """This attempt has no right to run any more."""


class ControlPlane:
    """One attempt's conversation. Threads may share it."""

    def __init__(self, url: str, attempt_id: str, token: str) -> None:
        self._origin = _origin(url)
        self._url = url.rstrip("/")
        self._base = f"{self._url}/internal/v1/attempts/{quote(attempt_id, safe='')}"
        self._bearer = {"Authorization": f"Bearer {token}"}
        self._name = secrets.token_hex(8)
        self._http = httpx.Client(trust_env=False, timeout=_HEARTBEAT_TIMEOUT, follow_redirects=False)

    def plan(self) -> tuple[Plan, float]:
        """The plan, and when it was asked for."""
        asked_at = boottime()
        return _parse(Plan, self._ask("GET", "/plan", headers={HEADER_RUNNER: self._name})), asked_at

    def started(self) -> tuple[LeaseOut, float]:
        """Tell that the paid clock runs."""
        asked_at = boottime()
        return _parse(LeaseOut, self._ask("POST", "/started", StartedIn())), asked_at

    def heartbeat(self, beat: HeartbeatIn) -> tuple[HeartbeatOut, float]:
        """Renew the lease, hand over progress and log lines, learn what to do."""
        asked_at = boottime()
        return _parse(HeartbeatOut, self._ask("POST", "/heartbeat", beat)), asked_at

    def finished(self, report: FinishedIn) -> None:
        """The attempt is over."""
        self._ask("POST", "/finished", report)

    def checkpoint_url(self) -> str:
        """Where the checkpoint that the plan names is read from."""
        return f"{self._base}/checkpoint"

    def read_input(self, file: InputFile, offset: int) -> Iterator[tuple[int, bytes]]:
        """Pairs of (position, bytes) from `offset` on, or from 0 where the other side cannot resume."""
        url = f"{self._url}{file.url}" if file.url.startswith("/") else file.url
        headers = dict(self._bearer) if _origin(url) == self._origin else {}
        headers["Accept-Encoding"] = "identity"  # positions are of the stored bytes
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            with self._http.stream("GET", url, headers=headers, timeout=_TRANSFER_TIMEOUT) as response:
                if response.status_code not in (200, 206):
                    response.read()
                    raise _refusal(response)
                position = offset if response.status_code == 206 else 0
                for chunk in response.iter_raw():  # as it arrives: a broken connection loses nothing
                    yield position, chunk
                    position += len(chunk)
        except httpx.HTTPError as error:
            raise Away(_why(error)) from None

    def put_output(
        self, path: Path, name: str, *, sha256: str, kind: OutputKind, meta: Mapping[str, Any], stop: threading.Event
    ) -> OutputOut:
        """Store one output. `stop` breaks off a long upload."""
        headers = {
            **self._bearer,
            HEADER_SHA256: sha256,
            HEADER_KIND: kind.value,
            HEADER_META: json.dumps(meta, ensure_ascii=True, separators=(",", ":")),
        }
        return _parse(OutputOut, self._put(f"/outputs/{quote(name)}", path, headers, stop))

    def put_checkpoint(
        self, path: Path, *, sha256: str, step: int, ran_ms: int, stop: threading.Event
    ) -> CheckpointOut:
        """Keep a packed checkpoint in place of the one before."""
        headers = {**self._bearer, HEADER_SHA256: sha256, HEADER_STEP: str(step), HEADER_RAN_MS: str(ran_ms)}
        return _parse(CheckpointOut, self._put("/checkpoint", path, headers, stop))

    def _put(self, where: str, path: Path, headers: Mapping[str, str], stop: threading.Event) -> httpx.Response:
        told = {
            **headers,
            "Content-Length": str(path.stat().st_size),
            "Content-Type": "application/octet-stream",
        }

        def chunks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while (chunk := file.read(_CHUNK)) and not stop.is_set():
                    yield chunk

        try:
            response = self._http.put(self._base + where, content=chunks(), headers=told, timeout=_TRANSFER_TIMEOUT)
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: fewer bytes than announced
            raise Away(_why(error)) from None
        if not response.is_success:
            raise _refusal(response)
        return response

    def _ask(
        self, method: str, path: str, body: Wire | None = None, *, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        sent, content = {**self._bearer, **(headers or {})}, None
        if body is not None:
            sent["Content-Type"], content = "application/json", body.model_dump_json().encode()
        try:
            response = self._http.request(method, self._base + path, headers=sent, content=content)
        except httpx.HTTPError as error:
            raise Away(_why(error)) from None
        if not response.is_success:
            raise _refusal(response)
        return response


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _parse(model: type[_W], response: httpx.Response) -> _W:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise Away(f"the answer is no {model.__name__}: {error.error_count()} fields are wrong") from None


def _refusal(response: httpx.Response) -> Exception:
    if response.status_code >= 500 or response.status_code in (408, 425, 429):
        return Away(f"HTTP {response.status_code}")
    code, message = "unknown", "the control plane refused"
    try:
        problem = response.json()
        code, message = str(problem["code"]), str(problem.get("detail") or problem.get("title") or message)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    kind = FenceLost if code == FENCE_LOST else Denied
    return kind(response.status_code, code, message[:500])


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
