"""The files a job brings: whole objects of its own firm, each under a name of its own."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import Conflict, InvalidInput
from scheduler import uploads
from scheduler.adapters.tables import ArtifactRow, InputRow, UploadRow
from scheduler.artifacts import artifact_view
from scheduler.specs import InputRef


async def resolve_inputs(tx: AsyncSession, refs: Sequence[InputRef], *, firm_id: str) -> list[InputRow]:
    """The objects behind a job's inputs.

    Raises NotFound for what is not the firm's, Conflict for half an upload, InvalidInput (`bad_input_name`).
    """
    _require_distinct([ref.name for ref in refs])
    return [await _resolve(tx, ref, firm_id=firm_id) for ref in refs]


async def _resolve(tx: AsyncSession, ref: InputRef, *, firm_id: str) -> InputRow:
    if ref.source_id.startswith("art_"):
        await artifact_view(tx, ref.source_id, firm_id=firm_id)
        artifact = await tx.get(ArtifactRow, ref.source_id)
        assert artifact is not None, "it was just seen"
        return InputRow(name=ref.name, blob=artifact.blob, sha256=artifact.sha256, size_bytes=artifact.size_bytes)
    upload: UploadRow = await uploads.upload_of(tx, ref.source_id, firm_id=firm_id)
    if upload.state != uploads.COMPLETE:
        raise Conflict(f"upload {upload.id} is not complete", code="upload_incomplete", hint="complete it first")
    return InputRow(name=ref.name, blob=uploads.blob_of(upload), sha256=upload.sha256, size_bytes=upload.size_bytes)


def _require_distinct(names: Sequence[str]) -> None:
    """No two files have one name, and none is the folder of another."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidInput(
                f"two inputs are named {name}", code="bad_input_name", hint="give each input a name of its own"
            )
        seen.add(name)
    for name in names:
        above = next((str(folder) for folder in PurePosixPath(name).parents if str(folder) in seen), None)
        if above is not None:
            raise InvalidInput(
                f"input {name} would lie in {above}, which is an input itself",
                code="bad_input_name",
                hint="rename one of the two",
            )
