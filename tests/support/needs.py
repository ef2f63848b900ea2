"""A need the machine does not meet skips a test and says what to install; in CI it fails instead."""

import os
from typing import NoReturn

import pytest


def missing(what: str, remedy: str) -> NoReturn:
    """Skip the running test because `what` is missing; with CI set, fail it: there nothing may skip."""
    sentence = f"{what} is missing; {remedy}"
    if os.environ.get("CI"):
        pytest.fail(f"{sentence} (nothing may be missing in CI)", pytrace=False)
    pytest.skip(sentence)


def need(present: bool, what: str, remedy: str) -> None:
    """Go on when `present`, else `missing`."""
    if not present:
        missing(what, remedy)
