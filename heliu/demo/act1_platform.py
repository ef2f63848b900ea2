"""Act 1: the platform is up, and says where."""

from heliu import front
from heliu.demo.stage import Stage
from heliu.supervisor import preflight, up
from heliu.supervisor.records import RunFolder
from kit.settings import Settings

SERVICES = ("postgres", "ray-head", "ray-node", "api", "gateway", "controller")


def platform_is_up(settings: Settings, stage: Stage) -> None:
    """Start it, or find it running."""
    instance = preflight.running_instance(settings.home)
    if instance and instance.ready:
        stage.did(f"a platform of this home runs already (process {instance.supervisor.pid}); it is used")
    else:
        up.start_detached(settings, lambda name, what: _show(stage, name, what))
    for what, where in front.addresses(settings).items():
        stage.did(f"{what}:", where)
    stage.did("one node of the centre optics-valley lends a pool of 2 slots: CPU slots, not GPUs")
    records = {record.name: record for record in RunFolder(settings.home).services()}
    wanted = SERVICES[1:] if settings.database_url else SERVICES
    alive = [name for name in wanted if name in records and records[name].process.find()]
    stage.must(len(alive) == len(wanted), f"every process is there: {', '.join(alive)}")


def _show(stage: Stage, name: str, what: str) -> None:
    if what in ("ready", "done") or what.startswith("ended"):
        stage.did(f"{name} is {what}" if not what.startswith("ended") else f"{name} {what}")
