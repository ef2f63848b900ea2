"""A program may print what it should not: no token of Heliu stays in its log or in the message of its end."""

import pytest

from quotas.bearers import SESSION_PREFIX, mint, mint_key
from quotas.vocabulary import KeyId
from scheduler.admission import attempt_token
from tests.support.scheduling import KEY, City

TOKENS = {
    "session": mint(SESSION_PREFIX).token,
    "key": mint_key(KeyId("key_01test00000000000000000000")).token,
    "attempt": attempt_token(KEY, "att_01test00000000000000000000", 1),
}


@pytest.mark.parametrize("kind", TOKENS)
async def test_a_token_that_a_program_prints_is_struck_out(city: City, kind: str) -> None:
    token = TOKENS[kind]
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    await runner.heartbeat(log=[f"using {token} now"])
    await runner.finished(ran_ms=0, outcome="failed", cause="program_failed", message=f"refused: {token}")
    logs = (await firm.http.get(f"/api/jobs/{job_id}/logs")).text
    seen = (await firm.http.get(f"/api/jobs/{job_id}")).text
    assert token not in logs + seen
    assert token[-20:] not in logs + seen, "not the secret part either"
    assert f"using {token[:3]}" in logs
    assert f"refused: {token[:3]}" in seen
