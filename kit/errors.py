"""Errors that know their code and whether to retry. Only `kit.web` knows what HTTP makes of them.

A message says what was wrong and what was expected; `hint` says what to do next.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class HeliuError(Exception):
    """The root of every refusal Heliu makes on purpose. `code` is stable and machine-readable."""

    default_code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.details = dict(details or {})
        self.retry_after_seconds = retry_after_seconds


class InvalidInput(HeliuError):
    """What was sent cannot be right, whoever sends it and whenever."""

    default_code = "invalid_input"


class TooLarge(HeliuError):
    """A body, file or number over its stated limit."""

    default_code = "too_large"


class Unauthenticated(HeliuError):
    """Nobody known is calling."""

    default_code = "unauthenticated"


class Forbidden(HeliuError):
    """The caller is known and may see the thing, but may not do this."""

    default_code = "forbidden"


class NotFound(HeliuError):
    """No such thing, or not the caller's: the answer is the same."""

    default_code = "not_found"


class Conflict(HeliuError):
    """It contradicts what is already there: same key with other content, a name taken, a state passed."""

    default_code = "conflict"


class Refused(HeliuError):
    """A rule of the domain says no: quota, money, state. `code` names the rule."""

    default_code = "refused"


class NoMoney(Refused):
    """The balance or budget does not cover what is asked."""

    default_code = "no_money"


class RateLimited(HeliuError):
    """Too many, too fast; `retry_after_seconds` says when."""

    default_code = "rate_limited"
    retryable = True


class Unavailable(HeliuError):
    """Something Heliu depends on does not answer at the moment."""

    default_code = "unavailable"
    retryable = True
