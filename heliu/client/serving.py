"""Models, adapters, deployments, replicas. Talking to a model is the OpenAI SDK's affair."""

from dataclasses import dataclass
from typing import Any

from heliu.client.serving_views import Adapter, Deployment, EngineLine, Model, Replica
from heliu.client.transport import Transport, new_idempotency_key


@dataclass(frozen=True, slots=True)
class Models:
    """The catalogue of base models."""

    _transport: Transport

    def register(self, **entry: Any) -> Model:
        """Add a base model; the same entry again is the entry that stands."""
        return Model(**self._transport.json("POST", "/api/models", body=entry))

    def get(self, name: str) -> Model:
        """One base model."""
        return Model(**self._transport.json("GET", f"/api/models/{name}"))

    def list(self) -> list[Model]:
        """Every base model and how many ready replicas serve the caller."""
        return [Model(**row) for row in self._transport.json("GET", "/api/models")]


@dataclass(frozen=True, slots=True)
class Adapters:
    """The firm's own adapters."""

    _transport: Transport

    def get(self, adapter: str) -> Adapter:
        """One adapter, by id or by name."""
        return Adapter(**self._transport.json("GET", f"/api/adapters/{adapter}"))

    def delete(self, adapter: str) -> None:
        """Delete it; requests that run with it finish."""
        self._transport.json("DELETE", f"/api/adapters/{adapter}")

    def list(self) -> list[Adapter]:
        """The firm's adapters, refused ones with the reason."""
        return [Adapter(**row) for row in self._transport.json("GET", "/api/adapters")]


@dataclass(frozen=True, slots=True)
class Deployments:
    """What is served."""

    _transport: Transport

    def create(
        self, model: str, *, kind: str, pool: str, idempotency_key: str | None = None, **options: Any
    ) -> Deployment:
        """Serve a model: `shared` (the platform pays the GPU time) or `dedicated` (the firm does)."""
        body = {"model": model, "kind": kind, "pool": pool, **options}
        key = idempotency_key or new_idempotency_key()
        return Deployment(**self._transport.json("POST", "/api/deployments", body=body, idempotency_key=key))

    def get(self, deployment_id: str) -> Deployment:
        """One deployment."""
        return Deployment(**self._transport.json("GET", f"/api/deployments/{deployment_id}"))

    def stop(self, deployment_id: str) -> Deployment:
        """Drain and stop its replicas, for good."""
        return Deployment(**self._transport.json("POST", f"/api/deployments/{deployment_id}/stop"))

    def replicas(self, deployment_id: str | None = None) -> list[Replica]:
        """Live replicas with the adapters loaded on each."""
        query = {"deployment_id": deployment_id}
        return [Replica(**row) for row in self._transport.json("GET", "/api/replicas", query=query)]

    def engines(self) -> list[EngineLine]:
        """Tokens billed against the engines' own counters."""
        return [EngineLine(**row) for row in self._transport.json("GET", "/api/engines")]

    def list(self) -> list[Deployment]:
        """The firm's deployments and the shared ones."""
        return [Deployment(**row) for row in self._transport.json("GET", "/api/deployments")]
