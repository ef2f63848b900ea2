"""Which client proves which feature of the gateway: what a test says of itself, for docs/compatibility.md."""

from collections.abc import Callable
from typing import Any

import pytest


def covers(client: str, endpoint: str, *features: str) -> Callable[[Any], Any]:
    """Say that a test drives `endpoint` with `client` and proves `features`. Literal arguments only: they are read
    from the source."""
    return pytest.mark.covers(client=client, endpoint=endpoint, features=features)
