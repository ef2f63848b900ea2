"""One running platform for every test of this folder, and the demo's own story told on it, act by act."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from heliu.client import Client
from heliu.client.job_views import JobDetail
from heliu.demo.act4_quote import FineTune
from heliu.demo.actors import Memory
from heliu.demo.stage import Stage
from heliu.demo.story import Story
from tests.support.running_platform import RunningPlatform, running_platform


@dataclass
class Telling:
    """The story so far: what each act made, and all that was printed."""

    story: Story
    platform: RunningPlatform
    printed: io.StringIO
    tune: FineTune | None = None
    jobs: dict[str, JobDetail] = field(default_factory=dict)

    @property
    def adapter(self) -> str:
        """Name of the adapter that the fine-tune of act 5 made."""
        assert self.tune is not None, "act 4 did not get so far"
        return self.tune.adapter

    def held(self) -> None:
        """Raises AssertionError with every promise of the story that was broken."""
        assert self.story.stage.failed == [], self.printed.getvalue()[-4000:]


@pytest.fixture(scope="package")
def platform() -> Iterator[RunningPlatform]:
    """For this folder only: the next folder's tests may start a Ray of their own."""
    with running_platform() as running:
        yield running


@pytest.fixture(scope="package")
def telling(platform: RunningPlatform) -> Iterator[Telling]:
    """The story, told to a file."""
    printed = io.StringIO()
    stage = Stage(Console(file=printed, width=118))
    with Client(platform.settings.api_url) as anyone:
        story = Story(platform.settings, stage, Memory(platform.home), anyone)
        story.cast.runs += 1
        yield Telling(story, platform, printed)
