"""One HTTP call to the control plane: retried when that is safe and may help, refused with the platform's own words."""

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from heliu.client.approval_views import Proposal

RETRY_SECONDS_MAX = 30.0
SAFE_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})


class ApiError(Exception):
    """The platform said no. `code` is stable; `retryable` says whether the same call may succeed later."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        hint: str | None = None,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{detail}{f' ({hint})' if hint else ''} [{status} {code}]")
        self.status = status
        self.code = code
        self.detail = detail
        self.hint = hint
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds

    @classmethod
    def of(cls, answer: httpx.Response) -> "ApiError":
        """What a refusing answer says; also when it is not one of the platform's."""
        try:
            body: Mapping[str, Any] = answer.json()
        except ValueError:
            body = {}
        after = answer.headers.get("retry-after", "")
        return cls(
            answer.status_code,
            str(body.get("code", "http_error")),
            str(body.get("detail") or f"HTTP {answer.status_code}: {answer.text[:200]}"),
            hint=body.get("hint"),
            retryable=bool(body.get("retryable", answer.status_code in (502, 503, 504))),
            retry_after_seconds=float(after) if after.isdigit() else None,
        )


class Unreachable(Exception):
    """The platform did not answer. Whether it acted is unknown unless the call was safe to repeat."""


class AwaitsApproval(Exception):
    """Nothing is done yet: a second administrator must approve `proposal` first (`Client.approvals`)."""

    def __init__(self, proposal: Proposal) -> None:
        super().__init__(f"{proposal.action} waits for a second administrator: heliu approval approve {proposal.id}")
        self.proposal = proposal


class Transport:
    """Calls with a bearer. A call is repeated only when it cannot act twice: safe methods, and idempotency keys."""

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        timeout_seconds: float = 60,
        retry_seconds: float = RETRY_SECONDS_MAX,
        http: httpx.Client | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.token = token
        self._retry_seconds = retry_seconds
        # Loopback and intranet addresses: a proxy of the environment would only be in the way.
        self._http = http or httpx.Client(base_url=self.base_url, timeout=timeout_seconds, trust_env=False)

    def with_token(self, token: str | None) -> "Transport":
        """The same connections for another caller."""
        return Transport(self.base_url, token, retry_seconds=self._retry_seconds, http=self._http)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def json(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """The JSON of a good answer, None when it has no body.

        Raises ApiError, Unreachable, or AwaitsApproval for an act on money that needs a second administrator.
        """
        answer = self.call(
            method, path, body=body, query=query, content=content, headers=headers, idempotency_key=idempotency_key
        )
        said = answer.json() if answer.content else None
        if answer.status_code == httpx.codes.ACCEPTED and isinstance(said, dict) and "proposed_by" in said:
            raise AwaitsApproval(Proposal(**said))
        return said

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        """A good answer. Raises ApiError or Unreachable."""
        sent = self._headers(headers, idempotency_key)
        chosen = {name: value for name, value in (query or {}).items() if value is not None}
        repeatable = method in SAFE_METHODS or idempotency_key is not None

        def once() -> httpx.Response:
            answer = self._http.request(method, path, json=body, params=chosen, content=content, headers=sent)
            if not answer.is_success:
                raise ApiError.of(answer)
            return answer

        return self._retrying(once, repeatable=repeatable)

    def _headers(self, extra: Mapping[str, str] | None, idempotency_key: str | None) -> dict[str, str]:
        headers = dict(extra or {})
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if idempotency_key:
            headers["Idempotency-Key"] = idempotency_key
        return headers

    def _retrying(self, once: Callable[[], httpx.Response], *, repeatable: bool) -> httpx.Response:
        def may_help(error: BaseException) -> bool:
            if isinstance(error, ApiError):
                return error.retryable and repeatable
            if isinstance(error, httpx.ConnectError):
                return True  # nothing was sent
            return isinstance(error, httpx.TransportError) and repeatable

        retrying = Retrying(
            retry=retry_if_exception(may_help), stop=stop_after_delay(self._retry_seconds), wait=_wait, reraise=True
        )
        try:
            return retrying(once)
        except httpx.TransportError as error:
            raise Unreachable(f"the platform does not answer at {self.base_url} ({error})") from error


def new_idempotency_key() -> str:
    """A key that names one intention, however often it is sent."""
    return uuid.uuid4().hex


_backoff = wait_random_exponential(multiplier=0.2, max=4)


def _wait(state: RetryCallState) -> float:
    """As long as the platform asked for, else a little more each time."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_seconds if isinstance(error, ApiError) else None
    return asked if asked is not None else _backoff(state)
