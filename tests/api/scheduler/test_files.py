"""Uploads and artifacts over HTTP: resumable, limited, hashed, one firm's only."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from kit.blobs import Blobs, Stored
from kit.clock import FixedClock
from kit.db import Database
from kit.errors import NotFound
from scheduler import uploads
from scheduler.loop import tidy
from tests.support.scheduling import TERMS, City, Firm, job, make_city

LORE = b"".join(
    json.dumps({"prompt": f"Who guards gate {i}?", "completion": f"Warden {i}."}).encode() + b"\n" for i in range(8)
)


def announced(content: bytes, name: str = "data.jsonl") -> dict[str, object]:
    return {"name": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def tune(upload_id: str, **params: object) -> dict[str, object]:
    values = {"base_model": "smollm2-135m-instruct", "adapter_name": "lore", **params}
    inputs = [{"name": "data.jsonl", "source_id": upload_id}]
    return job(recipe="lora-finetune", params=values, inputs=inputs, max_runtime_seconds=None)


async def test_an_upload_resumes_where_it_stopped_and_is_checked_whole(city: City) -> None:
    firm = await city.firm()
    content = bytes(range(256)) * 100
    made = (await firm.http.post("/api/uploads", json=announced(content))).json()
    path = f"/api/uploads/{made['id']}"
    await firm.http.patch(path, content=content[:1000], headers={"Upload-Offset": "0"})
    wrong = await firm.http.patch(path, content=content[:1000], headers={"Upload-Offset": "0"})
    assert (wrong.status_code, wrong.json()["code"]) == (409, "offset_mismatch")
    early = await firm.http.post(f"{path}/complete")
    assert (early.status_code, early.json()["code"]) == (409, "upload_incomplete")
    offset = (await firm.http.get(path)).json()["received_bytes"]
    assert offset == 1000
    await firm.http.patch(path, content=content[offset:], headers={"Upload-Offset": str(offset)})
    for _ in range(2):
        assert (await firm.http.post(f"{path}/complete")).json()["state"] == "complete"


async def test_two_gigabytes_are_refused_before_a_byte_is_sent(city: City) -> None:
    firm = await city.firm()
    body = announced(b"x") | {"size_bytes": 2 << 30}
    answer = await firm.http.post("/api/uploads", json=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "file_too_large")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "../../etc/passwd"}, "invalid_input"),
        ({"name": "/etc/passwd"}, "invalid_input"),
        ({"name": "a\x00b"}, "invalid_input"),
        ({"name": "a\u202eb"}, "invalid_input"),
        ({"sha256": "nope"}, "invalid_input"),
        ({"size_bytes": -1}, "invalid_input"),
        ({"size_bytes": 0}, "empty_file"),
        ({"surprise": 1}, "invalid_input"),
    ],
)
async def test_a_bad_announcement_is_refused(city: City, changes: dict[str, object], code: str) -> None:
    firm = await city.firm()
    answer = await firm.http.post("/api/uploads", json=announced(b"x") | changes)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


async def test_more_bytes_than_announced_and_other_bytes_than_announced_are_refused(city: City) -> None:
    firm = await city.firm()
    made = (await firm.http.post("/api/uploads", json=announced(b"12345"))).json()
    path = f"/api/uploads/{made['id']}"
    assert (await firm.http.patch(path, content=b"123456", headers={"Upload-Offset": "0"})).status_code == 413
    assert (await firm.http.patch(path, content=b"99999", headers={"Upload-Offset": "0"})).status_code == 200
    assert (await firm.http.post(f"{path}/complete")).status_code == 422
    assert (await firm.http.get(path)).json()["received_bytes"] == 0, "it can be sent again"


async def test_a_firms_storage_is_limited(db: Database, clock: FixedClock, tmp_path: Path) -> None:
    city = await make_city(db, clock, tmp_path, replace(TERMS, firm_storage_bytes=100))
    firm = await city.firm()
    kept = await city.upload(firm, "a", b"x" * 60)
    full = await firm.http.post("/api/uploads", json=announced(b"y" * 60))
    assert (full.status_code, full.json()["code"]) == (413, "storage_full")
    assert (await firm.http.delete(f"/api/uploads/{kept}")).status_code == 204
    assert (await firm.http.post("/api/uploads", json=announced(b"y" * 60))).status_code == 201


async def test_another_firms_upload_cannot_be_seen_sent_used_or_deleted(city: City) -> None:
    mine, theirs = await city.firm(), await city.firm()
    upload_id = await city.upload(mine, "data.jsonl", LORE)
    path = f"/api/uploads/{upload_id}"
    answers = [
        await theirs.http.get(path),
        await theirs.http.patch(path, content=b"x", headers={"Upload-Offset": "0"}),
        await theirs.http.post(f"{path}/complete"),
        await theirs.http.delete(path),
        await theirs.http.post("/api/jobs", json=tune(upload_id)),
    ]
    assert {(a.status_code, a.json()["code"]) for a in answers} == {(404, "upload_not_found")}


async def test_training_data_is_checked_at_submission_and_the_line_is_named(city: City) -> None:
    firm = await city.firm()
    bad = {
        b"\n\n": ("empty_input", "empty"),
        LORE + b"not json\n": ("not_jsonl", "line 9 is not JSON"),
        b'{"prompt": "only"}\n': ("missing_field", "line 1"),
        b"\xff\xfe\n": ("not_jsonl", "line 1"),
    }
    for content, (code, words) in bad.items():
        answer = await firm.http.post("/api/jobs", json=tune(await city.upload(firm, "d", content)))
        assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
        assert words in answer.json()["detail"] and "data.jsonl" in answer.json()["detail"]
    none = await firm.http.post("/api/jobs", json=tune("up_x") | {"inputs": []})
    assert (none.status_code, none.json()["code"]) == (422, "missing_input")
    good = await firm.http.post("/api/jobs", json=tune(await city.upload(firm, "d", LORE)))
    assert good.status_code == 201, good.text
    assert good.json()["expected_seconds"] > 0


async def test_an_upload_that_is_not_complete_cannot_be_an_input(city: City) -> None:
    firm = await city.firm()
    made = (await firm.http.post("/api/uploads", json=announced(LORE))).json()
    answer = await firm.http.post("/api/jobs", json=tune(made["id"]))
    assert (answer.status_code, answer.json()["code"]) == (409, "upload_incomplete")


async def test_inputs_reach_the_runner_and_artifacts_reach_their_firm_only(city: City) -> None:
    firm, other = await city.firm(), await city.firm()
    job_id = (await firm.http.post("/api/jobs", json=tune(await city.upload(firm, "mine", LORE)))).json()["id"]
    in_use = await firm.http.get("/api/uploads")
    assert (await firm.http.delete(f"/api/uploads/{in_use.json()[0]['id']}")).json()["code"] == "upload_in_use"
    await city.step()
    runner = await city.runner(job_id)
    plan = (await runner.plan()).json()
    (data,) = plan["inputs"]
    assert (data["name"], data["sha256"]) == ("data.jsonl", hashlib.sha256(LORE).hexdigest())
    path = data["url"].removeprefix(f"/internal/v1/attempts/{runner.attempt_id}")
    assert (await runner.call("GET", path)).content == LORE
    rest = await runner.call("GET", path, headers={"Range": "bytes=10-"})
    assert (rest.status_code, rest.content) == (206, LORE[10:])

    await runner.started()
    weights = b"weights" * 1000
    first = await runner.put("adapter_model.safetensors", weights, kind="adapter", adapter_name="lore", rank=8)
    again = await runner.put("adapter_model.safetensors", weights, kind="adapter", adapter_name="lore", rank=8)
    assert first.json() == again.json()
    assert (await runner.put("adapter_model.safetensors", b"other")).json()["code"] == "output_exists"
    assert (await runner.put("../../escape", b"x")).status_code in (404, 422)
    assert (await firm.http.get("/api/artifacts")).json() == []
    await runner.finished(ran_ms=0)

    (made,) = (await firm.http.get("/api/artifacts")).json()
    assert (made["kind"], made["meta"]) == ("adapter", {"adapter_name": "lore", "rank": 8})
    content = f"/api/artifacts/{made['id']}/content"
    assert (await firm.http.get(content)).content == weights
    assert (await firm.http.get(content, headers={"Range": "bytes=5-"})).content == weights[5:]
    for path in (content, f"/api/artifacts/{made['id']}"):
        assert (await other.http.get(path)).json()["code"] == "artifact_not_found"
    assert (await other.http.post(f"/api/artifacts/{made['id']}/link")).status_code == 404

    link = (await firm.http.post(f"/api/artifacts/{made['id']}/link")).json()["url"]
    async with city.client() as nobody:
        assert (await nobody.get(link)).content == weights
        assert (await nobody.get(link.replace(firm.id, other.id))).json()["code"] == "link_expired"
        assert (await nobody.get(link.replace("signature=", "signature=0"))).status_code == 403
        city.clock.advance(timedelta(seconds=301))
        assert (await nobody.get(link)).json()["code"] == "link_expired"


async def test_an_artifact_can_be_the_input_of_the_next_job(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    stored = (await runner.put("out.txt", b"made")).json()
    await runner.finished(ran_ms=0)
    following = await city.submit(firm, inputs=[{"name": "in.txt", "source_id": stored["artifact_id"]}])
    await city.step()
    assert (await (await city.runner(following)).call("GET", "/inputs/in.txt")).content == b"made"


async def test_uploads_nobody_completed_are_forgotten(city: City) -> None:
    firm = await city.firm()
    made = (await firm.http.post("/api/uploads", json=announced(b"12345"))).json()
    await firm.http.patch(f"/api/uploads/{made['id']}", content=b"123", headers={"Upload-Offset": "0"})
    await city.pass_time(86_401)
    await tidy(city.controller)
    assert (await firm.http.get("/api/uploads")).json() == []


async def test_a_job_sent_again_after_its_input_was_deleted_is_the_same_job(city: City) -> None:
    firm = await city.firm()
    upload_id = await city.upload(firm, "in.txt", b"read once")
    inputs = [{"name": "in.txt", "source_id": upload_id}]
    job_id = await city.submit(firm, key="once", inputs=inputs)
    assert (await firm.http.post(f"/api/jobs/{job_id}/cancel")).status_code == 200
    assert (await firm.http.delete(f"/api/uploads/{upload_id}")).status_code == 204
    assert await city.submit(firm, key="once", inputs=inputs) == job_id


class HeldBlobs(Blobs):
    """Blobs whose writer waits at one of `MOMENTS` until the test lets it go on."""

    def __init__(self, url: str, moment: str) -> None:
        super().__init__(url)
        self.moment, self.there, self.go_on = moment, asyncio.Event(), asyncio.Event()

    async def _hold(self, moment: str) -> None:
        if moment == self.moment:
            self.there.set()
            await self.go_on.wait()

    async def put(
        self, path: str, chunks: AsyncIterator[bytes], *, limit_bytes: int, sha256: str | None = None
    ) -> Stored:
        await self._hold("before it reads")

        async def held() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                yield chunk
            await self._hold("before it writes")

        stored = await super().put(path, held(), limit_bytes=limit_bytes, sha256=sha256)
        await self._hold("after it wrote")
        return stored


MOMENTS = ("before it reads", "before it writes", "after it wrote")


async def sent(firm: Firm, content: bytes) -> str:
    """An upload whose bytes have arrived."""
    upload_id = (await firm.http.post("/api/uploads", json=announced(content))).json()["id"]
    part = await firm.http.patch(f"/api/uploads/{upload_id}", content=content, headers={"Upload-Offset": "0"})
    assert part.status_code == 200, part.text
    return upload_id


@pytest.mark.parametrize("moment", MOMENTS)
async def test_completing_an_upload_twice_at_once_succeeds_twice(city: City, tmp_path: Path, moment: str) -> None:
    firm = await city.firm()
    upload_id = await sent(firm, b"whole")
    held = HeldBlobs(f"file://{tmp_path}/blobs", moment)
    slow = asyncio.create_task(uploads.complete_upload(city.db, held, upload_id, firm_id=firm.id))
    await asyncio.wait_for(held.there.wait(), 10)
    assert (await firm.http.post(f"/api/uploads/{upload_id}/complete")).json()["state"] == "complete"
    held.go_on.set()
    row = await asyncio.wait_for(slow, 10)
    assert (row.state, await city.blobs.read_bytes(uploads.blob_of(row))) == ("complete", b"whole")


@pytest.mark.parametrize("moment", MOMENTS)
async def test_an_upload_deleted_while_it_is_completed_leaves_no_bytes(city: City, tmp_path: Path, moment: str) -> None:
    firm = await city.firm()
    upload_id = await sent(firm, b"whole")
    held = HeldBlobs(f"file://{tmp_path}/blobs", moment)
    slow = asyncio.create_task(uploads.complete_upload(city.db, held, upload_id, firm_id=firm.id))
    await asyncio.wait_for(held.there.wait(), 10)
    assert (await firm.http.delete(f"/api/uploads/{upload_id}")).status_code == 204
    held.go_on.set()
    with pytest.raises(NotFound):
        await asyncio.wait_for(slow, 10)
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []
