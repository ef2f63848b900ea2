"""Pages that keep what commands printed between two marks, and READMEs that quote them: held true, or written anew."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.sources import ROOT

READMES = ("README.md", "README.zh-CN.md")


@dataclass(frozen=True, slots=True)
class Page:
    """docs/NAME.md. `changing`: what differs from run to run, but for its first group; `quote`: what READMEs show."""

    name: str
    changing: re.Pattern[str]
    quote: Callable[[str], str]

    def holds(self, written: str) -> None:
        """The page says what was printed now; HELIU_REWRITE writes it and what READMEs quote anew."""
        kept = self.walk()
        if not os.environ.get("HELIU_REWRITE"):
            assert self._shape(kept) == self._shape(written), "run this with HELIU_REWRITE=1 and look at what changed"
            return
        _replace(self._path, *self._marks, written)
        for readme in READMES:
            _replace(ROOT / readme, *self._quoted_between, self.quote(written))

    def walk(self) -> str:
        """What the page keeps."""
        return _between(self._path, *self._marks)

    def quoted(self) -> Iterator[str]:
        """What each README shows of it."""
        for readme in READMES:
            yield _between(ROOT / readme, *self._quoted_between)

    @property
    def _path(self) -> Path:
        return ROOT / "docs" / f"{self.name}.md"

    @property
    def _marks(self) -> tuple[str, str]:
        return f"<!-- {self.name} walk -->\n```console\n", f"```\n<!-- end of the {self.name} walk -->"

    @property
    def _quoted_between(self) -> tuple[str, str]:
        return f"<!-- from docs/{self.name}.md -->\n```console\n", "```\n<!-- end -->"

    def _shape(self, text: str) -> str:
        """What stays the same from run to run; the spaces that line up columns do not."""
        return re.sub(r"[\s─━-]+", " ", self.changing.sub(r"\1…", text))


def _between(path: Path, begin: str, end: str) -> str:
    _, begun, rest = path.read_text("utf-8").partition(begin)
    kept, ended, _ = rest.partition(end)
    assert begun and ended, f"{path.name} keeps it between {begin!r} and {end!r}"
    return kept


def _replace(path: Path, begin: str, end: str, text: str) -> None:
    before, _, rest = path.read_text("utf-8").partition(begin)
    path.write_text(before + begin + text + end + rest.partition(end)[2], "utf-8")
