"""How the demo tells its story: numbered steps, what was done, and whether each thing it promises holds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic

from openai import OpenAIError
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table

from heliu.client.transport import ApiError, AwaitsApproval, Unreachable
from kit.errors import HeliuError

_REFUSALS = (ApiError, AwaitsApproval, Unreachable, HeliuError, OpenAIError, TimeoutError)
"""What says in a sentence of its own why it is raised; of anything else the traceback is shown."""


class Broken(Exception):
    """A step did not hold and what follows needs it."""


class Stage:
    """Prints the story and counts what held and what did not."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.held = 0
        self.failed: list[str] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, number: int, title: str) -> Iterator[None]:
        """One numbered step. Raises Broken when something in it raised."""
        self.console.print()
        self.console.rule(f"[bold]{number}. {title}[/bold]", align="left", style="cyan")
        began = monotonic()
        try:
            yield
        except Broken:
            raise
        except _REFUSALS as error:
            self.failed.append(f"{number}. {title}: {error}")
            self.console.print(f"  [red]✗ refused:[/red] {escape(str(error))}")
            raise Broken(str(error)) from error
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            self.failed.append(f"{number}. {title}: {what}")
            self.console.print(f"  [red]✗ unexpected:[/red] {escape(what)}")
            self.console.print_exception()
            raise Broken(what) from error
        finally:
            self.seconds[f"{number}. {title}"] = monotonic() - began

    def did(self, sentence: str, detail: str = "") -> None:
        """Something was done; `detail` is an id or an amount."""
        self._line("•", f"{escape(sentence)}{f'  [dim]{escape(detail)}[/dim]' if detail else ''}")

    def check(self, holds: object, sentence: str) -> None:
        """A promise: counted, and shown as kept or broken."""
        if holds:
            self.held += 1
            self._line("[green]✓[/green]", escape(sentence))
        else:
            self.failed.append(sentence)
            self._line("[bold red]✗[/bold red]", f"[bold red]{escape(sentence)}[/bold red]")

    def _line(self, mark: str, text: str) -> None:
        """What does not fit in one line goes on below itself, not below the mark."""
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_column(no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(f"  {mark}", text)
        self.console.print(line, highlight=False)

    def must(self, holds: object, sentence: str) -> None:
        """A promise without which the story cannot go on. Raises Broken."""
        self.check(holds, sentence)
        if not holds:
            raise Broken(sentence)

    def table(self, title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> None:
        """A table; a column whose heading ends in `>` is right-aligned."""
        table = Table(header_style="bold")
        for heading in columns.values():
            right = heading.endswith(">")
            table.add_column(heading.rstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
        for row in rows:
            table.add_row(*(escape(row.get(key, "")) for key in columns))
        self.console.print(f"\n  [bold]{escape(title)}[/bold]", highlight=False)
        self.console.print(Padding(table, (0, 0, 1, 2)))

    def side_by_side(self, question: str, answers: Mapping[str, str]) -> None:
        """One question and what each model says to it."""
        table = Table.grid(expand=True, padding=(0, 1))
        for _ in answers:
            table.add_column(ratio=1)
        panels = [Panel(escape(answer.strip()), title=name, border_style="cyan") for name, answer in answers.items()]
        table.add_row(*panels)
        self.console.print(f"\n  [bold]{escape(question)}[/bold]")
        self.console.print(table)

    def ending(self) -> int:
        """Print the sum; returns the exit code: 0 when everything held."""
        self.console.print()
        if self.failed:
            lines = "\n".join(f"✗ {escape(sentence)}" for sentence in self.failed)
            self.console.print(Panel(lines, title=f"{len(self.failed)} did not hold", border_style="red"))
            return 1
        total = sum(self.seconds.values())
        self.console.print(f"[bold green]All {self.held} promises held.[/bold green] The story took {total:.0f} s.")
        return 0
