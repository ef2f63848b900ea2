"""What the platform answers about models, adapters, deployments and engines."""

from datetime import datetime

from heliu.client.people_views import View


class Model(View):
    name: str
    display_name: str
    owner: str
    licence: str
    context_tokens: int
    capabilities: list[str]
    replicas_ready: int = 0


class Adapter(View):
    id: str
    name: str
    firm_id: str
    base_model: str
    rank: int
    sha256: str
    size_bytes: int
    job_id: str
    state: str
    reason: str | None = None
    replicas_ready: int = 0


class Deployment(View):
    id: str
    model: str
    kind: str
    firm_id: str
    pool: str
    state: str
    replicas: int
    replicas_ready: int = 0
    blocked_reason: str | None = None


class AdapterLoad(View):
    adapter_id: str
    state: str
    reason: str | None = None


class Replica(View):
    id: str
    deployment_id: str
    model: str
    workload_id: str | None
    state: str
    reason: str | None = None
    ready_at: datetime | None = None
    adapters: tuple[AdapterLoad, ...] = ()


class EngineLine(View):
    """Tokens one engine start counted, and tokens billed for it."""

    subject: str
    model: str
    counted_prompt: int
    counted_generation: int
    warmup_prompt: int
    warmup_generation: int
    billed_prompt: int
    billed_generation: int
    difference_prompt: int
    difference_generation: int
    verdict: str
