"""Whatever /api's own schema allows or forbids is answered; nothing is an error of ours and nothing hangs.

`make nightly` sends far more of it.
"""

from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from tests.api.serving.conftest import City
from tests.support.schema_cases import FUZZ, cases_of, send

ENDS_THE_SESSION = ("DELETE", "/api/sessions/current")
"""Left out: what follows would be refused for want of a session."""


@pytest.fixture
def cases(app: FastAPI) -> st.SearchStrategy[Any]:
    """Of every route of the control plane."""
    return cases_of(app.openapi(), leave_out=frozenset({ENDS_THE_SESSION}))


@pytest.mark.timeout(3_600)
@FUZZ
@given(st.data())
async def test_nothing_that_the_schema_describes_is_an_error_of_ours(
    city: City, cases: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    case = data.draw(cases)
    answer = await send(city.admin, case)
    assert answer.status_code < 500, (answer.status_code, answer.text[:300], case.as_curl_command())
