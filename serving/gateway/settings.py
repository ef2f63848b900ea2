"""Settings of a gateway process, from `HELIU_GATEWAY_*` variables."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from kit.settings import Networks


class GatewaySettings(BaseSettings):
    """How one gateway behaves. Times in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="HELIU_GATEWAY_", extra="ignore")

    folder: Path | None = Field(default=None, description="usage log; default <home>/gateway; one gateway per folder")
    metrics_port: int = Field(default=8702, description="Prometheus metrics on loopback; 0 picks a free port")
    reuse_port: bool = Field(
        default=False,
        description="share the port with other gateways of this machine, one per core; each has its own folder and "
        "metrics port",
    )
    body_limit_bytes: int = 16 << 20
    bodies_bytes_max: int = Field(
        default=256 << 20, ge=1 << 20, description="of all large requests until they are answered; more is refused"
    )
    answers_bytes_max: int = Field(
        default=256 << 20,
        ge=1 << 20,
        description="of all large plain answers until they are sent; more waits at engines",
    )
    sending_bytes_max: int = Field(
        default=256 << 20,
        ge=1 << 20,
        description="of all answers that clients are slow to read; the slowest are cut off",
    )
    output_tokens_max: int = Field(default=32_768, description="cap of max_tokens")
    concurrency_per_key: int | None = 256
    key_seconds: float = Field(default=1.0, description="a known key is looked up again after this long")
    offline_seconds: float = Field(default=300, description="known keys are honoured this long without a database")
    wait_seconds: float = Field(default=30, description="how long a request may wait for a replica or an adapter")
    queue_max: int = 2_000
    queue_per_firm_max: int = 500
    tries_max: int = 3
    lease_seconds: int = 360
    lease_micro_yuan: int = Field(default=1_000_000, description="how much is leased at a time, when there is as much")
    backlog_bytes_max: int = Field(
        default=4 << 30, ge=16 << 20, description="unshipped usage on disk above which nothing is admitted"
    )
    ship_every_seconds: float = 0.25
    drain_seconds: float = 25
    head_seconds_max: float = 15
    first_byte_seconds: float = 600
    stall_seconds: float = Field(default=120, description="an engine silent for this long inside an answer is cut off")
    finish_seconds: float = Field(
        default=60, description="an answer whose tokens are only known at its end is let finish this long unheard"
    )
    image_bytes_max: int = Field(default=8 << 20, description="of one image that a request names by address")
    images_bytes_max: int = Field(default=16 << 20, description="of all such images of a request")
    images_seconds_max: float = Field(default=20, gt=0, description="until all such images of a request are here")
    image_fetches_max: int = Field(default=32, ge=1, description="images fetched at the same time")
    image_fetches_per_firm_max: int = Field(default=4, ge=1, description="of them for one firm")
    image_schemes: tuple[str, ...] = ("https",)
    image_networks: Networks = Field(default=(), description="networks (CIDR) images may come from, not public")
