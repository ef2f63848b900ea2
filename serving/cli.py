"""`heliu model`, `heliu adapter`, `heliu deploy`, `heliu replica`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call, show, tell, wrong_usage

model = typer.Typer(help="Base models of the catalogue.", no_args_is_help=True)
adapter = typer.Typer(help="Your firm's adapters.", no_args_is_help=True)
deploy = typer.Typer(help="What is served, and with how many replicas.", no_args_is_help=True)
replica = typer.Typer(help="The engines behind the deployments.", no_args_is_help=True)

MODEL_COLUMNS = {
    "name": "Model", "capabilities": "Can", "context_tokens": "Context", "max_loras": "Adapters",
    "replicas_ready": "Ready",
}  # fmt: skip
ADAPTER_COLUMNS = {
    "name": "Adapter", "base_model": "Base model", "rank": "Rank", "state": "State", "replicas_ready": "Loaded on",
    "reason": "Why",
}  # fmt: skip
DEPLOYMENT_COLUMNS = {
    "id": "Deployment", "model": "Model", "kind": "Kind", "pool": "Pool", "replicas": "Wanted",
    "replicas_ready": "Ready", "state": "State", "blocked_reason": "Why not more",
}  # fmt: skip
REPLICA_COLUMNS = {
    "id": "Replica", "model": "Model", "state": "State", "requests_running": "Running", "reason": "Why",
}  # fmt: skip
LOSS_COLUMNS = {
    "engine_start": "Engine start", "model": "Model", "prompt_tokens": "Prompt tokens",
    "generation_tokens": "Output tokens", "micro_yuan": "Micro-yuan", "booked_at": "Booked",
}  # fmt: skip

ModelName = Annotated[str, typer.Argument(help="A base model's name.")]
DeploymentId = Annotated[str, typer.Argument(help="A deployment's id.")]
FileArgument = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="A JSON file as in `heliu model show --json`.")
]


@model.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """List the base models and how many ready replicas serve you."""
    show(call("GET", "/api/models"), as_json=as_json, columns=MODEL_COLUMNS)


@model.command("show")
def show_model(name: ModelName, as_json: JsonFlag = False) -> None:
    """Show one base model."""
    show(call("GET", f"/api/models/{name}"), as_json=as_json)


@model.command("register")
def register_model(file: FileArgument, as_json: JsonFlag = False) -> None:
    """Add a base model to the catalogue (platform administrators)."""
    show(call("POST", "/api/models", json=_json_file(file)), as_json=as_json)


@model.command("change")
def change_model(name: ModelName, file: FileArgument, as_json: JsonFlag = False) -> None:
    """Change fields of a base model; what concerns the engine replaces its replicas one by one."""
    show(call("PATCH", f"/api/models/{name}", json=_json_file(file)), as_json=as_json)


@adapter.command("list")
def list_adapters(as_json: JsonFlag = False) -> None:
    """List your firm's adapters; a refused one says why."""
    show(call("GET", "/api/adapters"), as_json=as_json, columns=ADAPTER_COLUMNS)


@adapter.command("show")
def show_adapter(name: Annotated[str, typer.Argument(help="Its name or id.")], as_json: JsonFlag = False) -> None:
    """Show one adapter."""
    show(call("GET", f"/api/adapters/{name}"), as_json=as_json)


@adapter.command("register")
def register_adapter(
    job: Annotated[str, typer.Argument(help="The finished fine-tune job.")],
    name: Annotated[str | None, typer.Option(help="Another name than the job gave it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Register the adapter of a finished job again, under another name."""
    show(call("POST", "/api/adapters", json={"job_id": job, "name": name}), as_json=as_json)


@adapter.command("delete")
def delete_adapter(name: Annotated[str, typer.Argument(help="Its name or id.")], as_json: JsonFlag = False) -> None:
    """Delete an adapter: running requests finish, new ones are refused."""
    call("DELETE", f"/api/adapters/{name}")
    tell(f"adapter {name} is deleted", as_json=as_json, adapter=name, state="deleted")


@deploy.command("create")
def create_deployment(
    model_name: Annotated[str, typer.Argument(metavar="MODEL", help="A base model's name.")],
    pool: Annotated[str, typer.Option(help="Where, as <centre>/<accelerator>.")],
    replicas: Annotated[int, typer.Option(min=0, max=64, help="How many engines, to begin with.")] = 1,
    most: Annotated[int | None, typer.Option("--max", min=1, max=64, help="The most replicas it may have.")] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="For everybody, at the platform's cost (administrators).")
    ] = False,
    qos: Annotated[str, typer.Option(help="reserved, standard or interruptible.")] = "standard",
    key: Annotated[str | None, typer.Option("--idempotency-key", help="Sent twice, it makes one.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Serve a model: dedicated to your firm and at its cost, or shared."""
    body = {
        "model": model_name,
        "kind": "shared" if shared else "dedicated",
        "pool": pool,
        "replicas": replicas,
        "replicas_max": most,
        "qos": qos,
    }
    headers = {"Idempotency-Key": key} if key else {}
    show(call("POST", "/api/deployments", json=body, headers=headers), as_json=as_json)


@deploy.command("list")
def list_deployments(as_json: JsonFlag = False) -> None:
    """List your firm's deployments and the shared ones."""
    show(call("GET", "/api/deployments"), as_json=as_json, columns=DEPLOYMENT_COLUMNS)


@deploy.command("show")
def show_deployment(deployment: DeploymentId, as_json: JsonFlag = False) -> None:
    """Show one deployment."""
    show(call("GET", f"/api/deployments/{deployment}"), as_json=as_json)


@deploy.command("scale")
def scale_deployment(
    deployment: DeploymentId,
    replicas: Annotated[int, typer.Argument(min=0, max=64, help="How many.")],
    as_json: JsonFlag = False,
) -> None:
    """Change how many replicas there should be; its upper bound follows when it must."""
    bounds = call("GET", f"/api/deployments/{deployment}")
    body = {
        "replicas": replicas,
        "replicas_min": min(replicas, bounds["replicas_min"]),
        "replicas_max": max(replicas, bounds["replicas_max"]),
    }
    show(call("POST", f"/api/deployments/{deployment}/scale", json=body), as_json=as_json)


@deploy.command("restart")
def restart_deployment(deployment: DeploymentId, as_json: JsonFlag = False) -> None:
    """Replace its replicas one by one with fresh ones."""
    show(call("POST", f"/api/deployments/{deployment}/restart"), as_json=as_json)


@deploy.command("stop")
def stop_deployment(deployment: DeploymentId, as_json: JsonFlag = False) -> None:
    """Drain and stop its replicas, for good."""
    show(call("POST", f"/api/deployments/{deployment}/stop"), as_json=as_json)


@replica.command("list")
def list_replicas(
    deployment: Annotated[str | None, typer.Option(help="Of one deployment only.")] = None,
    ended: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List replicas."""
    wanted: dict[str, Any] = {"ended": ended} | ({"deployment_id": deployment} if deployment else {})
    show(call("GET", "/api/replicas", params=wanted), as_json=as_json, columns=REPLICA_COLUMNS)


@replica.command("losses")
def list_losses(as_json: JsonFlag = False) -> None:
    """List what engines computed and nobody was billed for: the platform's loss, by engine start."""
    show(call("GET", "/api/engines/losses"), as_json=as_json, columns=LOSS_COLUMNS)


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        wrong_usage(f"{path} is not JSON: {error}")
