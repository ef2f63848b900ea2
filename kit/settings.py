"""Settings every process shares. Read once, by a composition root, from `HELIU_*` variables."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, IPvAnyNetwork, ValidationInfo, field_validator
from pydantic_core import from_json
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from kit.proxies import ProxyHeader, TrustedProxies

PORT_MAX = 65535
Port = Annotated[int, Field(ge=0, le=PORT_MAX)]
Seconds = Annotated[int, Field(ge=1)]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


def _listed(value: object) -> object:
    """What a variable lists, with commas between or as JSON."""
    if not isinstance(value, str):
        return value
    return from_json(value) if value.startswith("[") else tuple(filter(None, map(str.strip, value.split(","))))


Networks = Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_listed)]
"""Networks in CIDR, as `10.0.0.0/8,fd00::/8`."""


class Settings(BaseSettings):
    """Where state lives and where things listen. A variable `HELIU_API_PORT` sets `api_port`."""

    model_config = SettingsConfigDict(env_prefix="HELIU_", extra="ignore")

    home: Path = Path(".heliu")
    database_url: str | None = Field(default=None, description="PostgreSQL URL; without it an embedded server is used")
    blob_url: str | None = Field(default=None, description="file:///…, or s3://… (untested); default <home>/blobs")
    host: str = "127.0.0.1"
    api_port: Port = 8700
    gateway_port: Port = 8701
    ray_gcs_port: int = Field(default=6390, ge=1, le=PORT_MAX - 1, description="the head takes the port above it too")
    ray_dashboard_port: Port = 8266
    node_venv: Path = Path(".venv-node")
    models_dir: Path | None = Field(default=None, description="prepared base models; default <home>/models")
    control_url: str | None = Field(default=None, description="how nodes reach the control plane; default loopback")
    ray_url: str | None = Field(default=None, description="Ray dashboard URL; default loopback at ray_dashboard_port")
    lease_seconds: Seconds = 20
    heartbeat_seconds: Seconds = Field(default=4, validate_default=True)
    lease_margin_seconds: Seconds = 5
    body_limit_bytes: int = Field(default=1 << 20, ge=1)
    upload_limit_bytes: int = Field(default=1 << 30, ge=1)
    database_pool_size: int = Field(default=10, ge=1)
    trusted_proxies: Networks = Field(
        default=(), description="networks (CIDR) of the ingress: only what these say of a client's address is believed"
    )
    proxy_header: ProxyHeader = Field(default=ProxyHeader.X_FORWARDED_FOR, description="the header they write it in")
    log_level: LogLevel = "INFO"

    @field_validator("heartbeat_seconds")
    @classmethod
    def _several_beats_a_lease(cls, value: int, info: ValidationInfo) -> int:
        lease = info.data.get("lease_seconds")
        if lease is not None and value >= lease:
            raise ValueError(f"it has to be shorter than HELIU_LEASE_SECONDS, which is {lease}")
        return value

    @property
    def api_url(self) -> str:
        """The control plane, as this machine reaches it."""
        return f"http://{self.host}:{self.api_port}"

    @property
    def gateway_url(self) -> str:
        """The gateway, as this machine reaches it."""
        return f"http://{self.host}:{self.gateway_port}"

    @property
    def ray_dashboard_url(self) -> str:
        """Where the Ray Jobs API answers."""
        return self.ray_url or f"http://127.0.0.1:{self.ray_dashboard_port}"

    @property
    def node_control_url(self) -> str:
        """The control plane, as nodes reach it."""
        return self.control_url or self.api_url

    @property
    def blobs(self) -> str:
        """URL of the object store."""
        return self.blob_url or f"file://{self.home.resolve()}/blobs"

    @property
    def models(self) -> Path:
        """Folder of prepared base models on this machine's node."""
        return self.models_dir or self.home / "models"

    @property
    def proxies(self) -> TrustedProxies:
        """Who may say whose request it passes on."""
        return TrustedProxies(self.trusted_proxies, self.proxy_header)

    def secret_file(self, name: str) -> Path:
        """Path of a secret kept by this installation (mode 0600)."""
        return self.home / "secrets" / name
