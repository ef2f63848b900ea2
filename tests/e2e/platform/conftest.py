"""One running platform for every test of this folder, and the demo's own story told on it, act by act."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from openai import OpenAI
from rich.console import Console

from heliu.client import Client
from heliu.client.job_views import JobDetail
from heliu.demo.act4_quote import FineTune
from heliu.demo.act8_batch import RESULTS
from heliu.demo.actors import Memory
from heliu.demo.stage import Stage
from heliu.demo.story import BASE_MODEL, Story
from tests.support.log_search import LogSearch
from tests.support.running_platform import RunningPlatform, running_platform


@dataclass
class Telling:
    """The story so far: what each act made, and all that was printed."""

    story: Story
    platform: RunningPlatform
    printed: io.StringIO
    tune: FineTune | None = None
    jobs: dict[str, JobDetail] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.search = LogSearch(self.platform)

    @property
    def adapter(self) -> str:
        """Name of the adapter that the fine-tune of act 5 made."""
        assert self.tune is not None, "act 4 did not get so far"
        return self.tune.adapter

    def assert_nothing_secret_was_written(self) -> None:
        """No log of the home, of Ray or of a workload holds a secret, a prompt or an output."""
        cast, search = self.story.cast, self.search
        for who in (cast.owner, cast.developer, cast.administrator, cast.rival):
            if who is not None:
                search.learn("a password", who.password)
        search.learn_the_platforms()
        if "text-batch" in self.jobs:
            (stored,) = [one for one in self.jobs["text-batch"].artifacts if one.name == RESULTS]
            for line in self.story.developer.files.download(stored.id).decode().splitlines():
                search.learn("an output of the batch", json.loads(line)["text"])
            search.learn("an answer of a model", self.ask("Name three rivers of China."))
        search.assert_nothing_found()

    def ask(self, question: str, *, model: str = BASE_MODEL, tokens: int = 24) -> str:
        """A model's answer through the gateway."""
        url = f"{self.platform.settings.gateway_url}/v1"
        with OpenAI(base_url=url, api_key=self.story.cast.key, timeout=60, max_retries=0) as openai:
            answer = openai.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                max_tokens=tokens,
                temperature=0,
            )
        return answer.choices[0].message.content or ""

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
