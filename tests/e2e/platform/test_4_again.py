"""The command itself, as CI runs it, on the home that the story and the faults left: told again, then all stops."""

import json

import pytest

from heliu.demo.actors import RIVAL_USCC, USCC
from heliu.supervisor import records
from heliu.supervisor.records import RunFolder
from kit.postgres import embedded_pid
from tests.e2e.platform.conftest import Telling
from tests.support.running_platform import RunningPlatform

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(540, func_only=True)]

SECONDS_MAX = 400


def test_demo_exit_tells_the_story_again_with_the_same_firm_and_leaves_nothing_running(
    platform: RunningPlatform, telling: Telling
) -> None:
    firm, key = telling.story.firm_id, telling.story.cast.key_id
    instance = RunFolder(platform.home).instance()
    assert instance is not None, "the tests before left it running"

    done = platform.heliu("demo", "--exit", "--json", seconds=SECONDS_MAX)

    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert (told["failed"], told["running"]) == ([], False)
    assert told["held"] > 20
    assert [title.split(".")[0] for title in told["seconds"]] == [str(number) for number in range(1, 11)]
    assert RunFolder(platform.home).instance() is None
    left = [process for ref in records.marked(instance.id) if (process := ref.find()) is not None]
    assert left == []
    assert embedded_pid(platform.home / "postgres") is None
    _one_firm_each(platform, telling, firm, key)


def _one_firm_each(platform: RunningPlatform, telling: Telling, firm: str, key: str | None) -> None:
    """Both runs stand in the books of one firm."""
    remembered = json.loads((platform.home / "demo.json").read_text())
    assert (remembered["firm_id"], remembered["key_id"], remembered["runs"]) == (firm, key, 2)
    platform.start()
    firms = telling.story.administrator.firms.list()
    assert [one.id for one in firms if one.uscc == USCC] == [firm]
    assert len([one for one in firms if one.uscc == RIVAL_USCC]) == 1
    adapters = {one.name for one in telling.story.developer.adapters.list()}
    assert {"lantern-lore-1", "lantern-lore-2"} <= adapters
