"""Options and arguments that several commands of this package take."""

from typing import Annotated

import typer

FirmOption = Annotated[str | None, typer.Option("--firm", help="Another firm's id; default: your own.")]
FirmId = Annotated[str, typer.Argument(help="A firm's id (firm_…).")]
Why = Annotated[str | None, typer.Option("--reason", help="Why; the audit log keeps it.")]
WhyNeeded = Annotated[str, typer.Option("--reason", help="Why; the audit log keeps it.")]
WhyAsked = Annotated[str, typer.Option("--reason", prompt="Reason", help="Why; asked for when left out.")]
