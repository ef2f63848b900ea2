"""Settings of a gateway process, from `HELIU_GATEWAY_*` variables."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from kit.settings import Networks, Port

Size = Annotated[int, Field(ge=1 << 20)]
Number = Annotated[int, Field(ge=1)]
Time = Annotated[float, Field(ge=0)]


class GatewaySettings(BaseSettings):
    """How one gateway behaves. Times in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="HELIU_GATEWAY_", extra="ignore")

    folder: Path | None = Field(default=None, description="usage log; default <home>/gateway; one gateway per folder")
    metrics_port: Port = Field(default=8702, description="Prometheus metrics on loopback; 0 picks a free port")
    reuse_port: bool = Field(
        default=False,
        description="share the port with other gateways of this machine, one per core; each has its own folder and "
        "metrics port",
    )

    body_limit_bytes: Size = Field(default=16 << 20, description="of one request; more is refused")
    bodies_bytes_max: Size = Field(default=256 << 20, description="of all large requests until an engine answers")
    answers_bytes_max: Size = Field(default=256 << 20, description="of all large plain answers until they are sent")
    sending_bytes_max: Size = Field(default=256 << 20, description="of all answers that clients are slow to read")
    head_seconds_max: Time = Field(default=15, description="for a request's head to arrive")

    key_seconds: float = Field(default=1.0, gt=0, lt=1.5, description="between two confirmations of all keys in use")
    offline_seconds: Time = Field(default=300, description="known keys are honoured this long without a database")
    concurrency_per_key: Number | None = Field(default=256, description="requests of a key at once in this gateway")
    output_tokens_max: Number = Field(default=32_768, description="cap of max_tokens")
    lease_seconds: int = Field(default=360, ge=10, description="of money, minutes and places that a gateway leases")
    lease_micro_yuan: Number = Field(default=1_000_000, description="leased at a time, when there is as much")
    backlog_bytes_max: int = Field(
        default=4 << 30, ge=16 << 20, description="unshipped usage on disk above which nothing is admitted"
    )
    ship_every_seconds: Time = Field(default=1.0, description="usage goes to the ledger this often")

    wait_seconds: Time = Field(default=30, description="how long a request may wait for a replica or an adapter")
    queue_max: Number = Field(default=2_000, description="requests that wait for one model")
    queue_per_firm_max: Number = Field(default=500, description="of them of one firm")
    tries_max: Number = Field(default=3, description="replicas that a request is sent to before one answers")
    first_byte_seconds: Time = Field(default=600, description="for an engine to begin its answer")
    stall_seconds: Time = Field(default=120, description="an engine silent for this long inside an answer is cut off")
    finish_seconds: Time = Field(
        default=60, description="an answer whose tokens are only known at its end is let finish this long unheard"
    )
    drain_seconds: Time = Field(default=25, description="for running answers to end after SIGTERM")

    image_bytes_max: Number = Field(default=8 << 20, description="of one image that a request names by address")
    images_bytes_max: Number = Field(default=16 << 20, description="of all such images of a request")
    images_seconds_max: float = Field(default=20, gt=0, description="until all such images of a request are here")
    image_fetches_max: Number = Field(default=32, description="images fetched at the same time")
    image_fetches_per_firm_max: Number = Field(default=4, description="of them for one firm")
    image_schemes: tuple[str, ...] = Field(default=("https",), description="of their addresses")
    image_networks: Networks = Field(default=(), description="networks (CIDR) images may come from, not public")
