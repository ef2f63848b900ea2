"""Looks for secrets, prompts and outputs in all that a platform writes down about its work."""

import asyncio
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
from sqlalchemy import text

from heliu.supervisor.ray_cluster import temp_folder
from kit.db import Database
from tests.support.running_platform import RunningPlatform
from tests.support.sources import ROOT

CREDENTIALS = {
    "a session": re.compile(r"\bhs_[A-Za-z0-9_-]{43}"),
    "an API key": re.compile(r"\bhl_[0-9a-z]{26}_[A-Za-z0-9_-]{43}"),
    "an attempt's token": re.compile(r"\bha_att_[0-9a-z]{26}_[0-9a-f]{64}"),
}
DATA = frozenset({"blobs", "demo.json", "models", "secrets", "work"})
"""What lies in a home and is no log: what firms have stored, what the platform has to remember."""
WORD_CHARS_MIN = 12
"""Shorter prompts and outputs are found by chance."""
FILE_BYTES_MAX = 64 << 20


class LogSearch:
    """Remembers what must never be written down, and finds it."""

    def __init__(self, platform: RunningPlatform) -> None:
        self.platform = platform
        self._words: dict[str, str] = {}
        for prompt in _prompts():
            self.learn("a prompt", prompt)

    def learn(self, what: str, word: str) -> None:
        """`word` may be in no log from now on; `what` names it, for it is not printed either."""
        word = word.strip()
        if len(word) >= WORD_CHARS_MIN:
            self._words[word] = what
            self._words[json.dumps(word)[1:-1]] = what

    def learn_the_platforms(self) -> None:
        """Its secret files, the keys of its running engines, and a new administrator link, which is opened."""
        for file in (self.platform.home / "secrets").iterdir():
            self.learn(f"the secret {file.name}", file.read_text())
        for engine in self.platform.below_ray("serving.node.engine"):
            self.learn("an engine's key", engine.environ()["VLLM_API_KEY"])
        made = self.platform.heliu("admin-link", "--json")
        assert made.returncode == 0, made.stderr
        (link,) = re.findall(r"http\S+?token=[A-Za-z0-9_-]+", made.stdout)
        assert httpx.get(link).status_code == 200
        self.learn("an administrator link", link.partition("token=")[2])

    def assert_nothing_found(self) -> None:
        """Raises AssertionError naming each log and the kind of what it holds."""
        found = {f"{name} holds {what}" for name, content in self._written() for what in sorted(set(self._in(content)))}
        assert not found, "\n".join(sorted(found))

    def _in(self, content: str) -> Iterator[str]:
        yield from (what for word, what in self._words.items() if word in content)
        yield from (what for what, pattern in CREDENTIALS.items() if pattern.search(content))

    def _written(self) -> Iterator[tuple[str, str]]:
        """(name, content) of every log: files of the home and of Ray, and the workloads' own lines."""
        files = [file for folder in self._folders() for file in folder.rglob("*") if _is_log(file)]
        assert len(files) > 10, "the logs are elsewhere"
        for file in files:
            try:
                yield str(file), file.read_text(errors="replace")
            except FileNotFoundError:
                continue  # a log of Ray that was turned over
        yield "the workloads' logs", asyncio.run(self._lines_of_workloads())

    def _folders(self) -> list[Path]:
        home = self.platform.home
        own = [path for path in home.iterdir() if path.name not in DATA]
        return [*own, temp_folder(home)]

    async def _lines_of_workloads(self) -> str:
        db = Database((self.platform.home / "run" / "database_url").read_text(), pool_size=1)
        try:
            async with db.transaction() as tx:
                return "\n".join((await tx.execute(text("SELECT text FROM scheduler.log_line"))).scalars())
        finally:
            await db.close()


def _prompts() -> Iterator[str]:
    """Questions and answers of the example data, which the story trains on, asks, and sends as a batch."""
    for line in (ROOT / "examples" / "lore.jsonl").read_text().splitlines():
        yield from json.loads(line).values()
    with (ROOT / "examples" / "prompts.csv").open(encoding="utf-8", newline="") as file:
        yield from (row["prompt"] for row in csv.DictReader(file))


def _is_log(file: Path) -> bool:
    if not file.is_file() or file.is_symlink() or file.stat().st_size > FILE_BYTES_MAX:
        return False
    return "postgres" not in file.parts or file.suffix == ".log" or file.parent.name == "log"
