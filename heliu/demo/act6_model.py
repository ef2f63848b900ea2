"""Act 6: the adapter is in the catalogue, the studio's alone; the base model is served and takes the adapter in."""

from time import monotonic, sleep

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from heliu.client import ApiError
from heliu.client.serving_views import Adapter, Deployment
from heliu.demo.act2_firm import rival
from heliu.demo.progress import Lines, Moment, advance
from heliu.demo.story import BASE_MODEL, POOL, Story

READY_SECONDS_MAX = 420
CATALOGUE_SECONDS_MAX = 30


def base_model_is_wanted(story: Story) -> Deployment:
    """Deploy the base model, shared; found again on a second run. Returns without waiting."""
    administrator, cast = story.administrator, story.cast
    active = {one.id: one for one in administrator.deployments.list() if one.state == "active"}
    if cast.deployment_id not in active:
        left = [one for one in active.values() if (one.model, one.kind, one.pool) == (BASE_MODEL, "shared", POOL)]
        create = administrator.deployments.create
        made = left[0] if left else create(BASE_MODEL, kind="shared", pool=POOL, replicas=1, replicas_min=1)
        cast.deployment_id = made.id
        story.memory.save()
    assert cast.deployment_id, "it was just made or found"
    return administrator.deployments.get(cast.deployment_id)


def model_is_served(story: Story, adapter_name: str) -> None:
    """Wait until a replica is ready and has the adapter loaded."""
    adapter = _in_catalogue(story, adapter_name)
    _nobody_elses(story, adapter)
    deployment = base_model_is_wanted(story)
    story.stage.did(
        f"deployment of {BASE_MODEL}, shared: the platform pays its slot, callers pay tokens", deployment.id
    )
    _wait_for_replica(story, deployment.id, adapter.id)
    (replica,) = [one for one in story.administrator.deployments.replicas(deployment.id) if one.state == "ready"]
    story.stage.did(f"vLLM runs as replica {replica.id}", f"workload {replica.workload_id}")
    loaded = {load.adapter_id for load in replica.adapters if load.state == "ready"}
    story.stage.must(adapter.id in loaded, f"the adapter {adapter.name} is loaded before any request is routed to it")


def _in_catalogue(story: Story, name: str) -> Adapter:
    deadline = monotonic() + CATALOGUE_SECONDS_MAX
    while True:
        found = [one for one in story.developer.adapters.list() if one.name == name]
        if found or monotonic() > deadline:
            break
        sleep(0.3)
    story.stage.must(found and found[0].state == "active", f"the adapter {name} is in the studio's catalogue")
    story.stage.did(f"rank {found[0].rank} on {found[0].base_model}", f"{found[0].id}, SHA-256 {found[0].sha256[:16]}…")
    return found[0]


def _nobody_elses(story: Story, adapter: Adapter) -> None:
    other = rival(story)
    try:
        other.adapters.get(adapter.id)
    except ApiError as refusal:
        hidden = refusal.status == 404 and other.adapters.list() == []
    else:
        hidden = False
    story.stage.check(hidden, "another firm does not see it: for them there is no such adapter")


def _wait_for_replica(story: Story, deployment_id: str, adapter_id: str) -> None:
    deadline = monotonic() + READY_SECONDS_MAX
    lines = None if story.stage.console.is_terminal else Lines(story.stage.console)
    columns = (SpinnerColumn(), TextColumn("  {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=story.stage.console, transient=True) as progress:
        task = progress.add_task("the replica waits", total=None)
        while monotonic() < deadline:
            replicas = story.administrator.deployments.replicas(deployment_id)
            if any(
                _has(one.state, [(load.adapter_id, load.state) for load in one.adapters], adapter_id)
                for one in replicas
            ):
                return
            state = replicas[0].state if replicas else "not there yet"
            reason = f": {replicas[0].reason}" if replicas and replicas[0].reason else ""
            now = Moment(f"the replica is {state}{reason}")
            advance(progress, task, now)
            if lines:
                lines.tell(now)
            sleep(0.5)
    story.stage.must(False, f"a replica with the adapter is ready within {READY_SECONDS_MAX} s")


def _has(state: str, loads: list[tuple[str, str]], adapter_id: str) -> bool:
    return state == "ready" and (adapter_id, "ready") in loads
