"""A replica's parameters as they arrive on the node: `serving.vocabulary.ReplicaParams`, checked."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from serving.vocabulary import ADAPTER_RANK_MAX


class Params(BaseModel):
    """Closed: a setting this node does not know must not be ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    replica_id: str
    deployment_id: str
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,127}$")]
    source: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,127}$")]
    revision: str
    engine_arguments: dict[str, Any]
    context_tokens: Annotated[int, Field(ge=1)]
    capabilities: list[str]
    max_loras: Annotated[int, Field(ge=0, le=1024)]
    max_lora_rank: Annotated[int, Field(ge=1, le=ADAPTER_RANK_MAX)]
    generation: int
