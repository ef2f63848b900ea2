"""What every `heliu` sub-command shares: calling the platform over HTTP, printing, exit codes.

Exit codes: 0 done · 1 refused or failed · 2 wrong usage · 3 the platform cannot be reached · 4 not signed in.
With `--json` an answer is JSON on standard output and a refusal is JSON on standard error: code, message, hint.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

REFUSED, USAGE, UNREACHABLE, SIGNED_OUT = 1, 2, 3, 4

_json_is_asked: ContextVar[bool] = ContextVar("json_is_asked", default=False)


def note_json(asked: bool) -> bool:
    """Remember whether this command was asked for JSON."""
    _json_is_asked.set(asked)
    return asked


JsonFlag = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON, also when refused.", callback=note_json, is_eager=True, show_default=False
    ),
]
"""On every command; a refusal then is JSON too, from wherever it comes."""

console = Console()
complaints = Console(stderr=True)


def home() -> Path:
    """Folder of this installation: `HELIU_HOME` or `.heliu`."""
    return Path(os.environ.get("HELIU_HOME", ".heliu"))


def api_url() -> str:
    """The control plane: `HELIU_API_URL`, or the one on this machine."""
    default = f"http://127.0.0.1:{os.environ.get('HELIU_API_PORT', '8700')}"
    return os.environ.get("HELIU_API_URL", default).rstrip("/")


def session_file() -> Path:
    """Where `heliu login` keeps the session, readable by its owner only."""
    return home() / "session.json"


def token() -> str | None:
    """The caller's bearer: `HELIU_TOKEN`, or the session that `heliu login` kept."""
    if from_environment := os.environ.get("HELIU_TOKEN"):
        return from_environment
    try:
        return str(json.loads(session_file().read_text())["token"])
    except (FileNotFoundError, KeyError, ValueError):
        return None


def save_token(value: str) -> None:
    """Keep a session for the commands that follow."""
    path = session_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"token": value}))


@contextmanager
def remote(*, timeout_seconds: float = 60) -> Iterator[httpx.Client]:
    """An HTTP client of the control plane that carries the caller's session."""
    bearer = token()
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    with httpx.Client(base_url=api_url(), headers=headers, timeout=timeout_seconds) as client:
        yield client


def call(method: str, path: str, **options: Any) -> Any:
    """Call the control plane and return its JSON; a refusal is printed and ends the command."""
    try:
        with remote() as client:
            answer = client.request(method, path, **options)
    except httpx.TransportError as error:
        unreachable(error)
    return unwrap(answer)


def unreachable(error: httpx.TransportError) -> NoReturn:
    """Say that the platform did not answer and end the command."""
    fail(
        f"the platform does not answer at {api_url()} ({error})",
        hint="start it: heliu up",
        code="unreachable",
        exit_code=UNREACHABLE,
    )


def unwrap(answer: httpx.Response) -> Any:
    """JSON of a good answer; a refusal is printed and ends the command."""
    if answer.is_success:
        return answer.json() if answer.content else None
    try:
        details = answer.json()
        message, hint, code = details.get("detail", answer.text), details.get("hint"), details.get("code")
    except (ValueError, AttributeError):
        message, hint, code = f"HTTP {answer.status_code}: {answer.text[:200]}", None, None
    code = code or f"http_{answer.status_code}"
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        fail(message, hint=hint or "sign in: heliu login", code=code, exit_code=SIGNED_OUT)
    fail(message, hint=hint, code=code)


def fail(message: str, *, hint: str | None = None, code: str = "refused", exit_code: int = REFUSED) -> NoReturn:
    """Say what was wrong and what to do, on standard error, and end the command; `code` is stable, for programs."""
    if _json_is_asked.get():
        print_refusal(message, hint=hint, code=code)
    else:
        complaints.print(f"[red]refused:[/red] {escape(str(message))}", highlight=False)
        if hint:
            complaints.print(f"[dim]{escape(hint)}[/dim]", highlight=False)
    raise typer.Exit(exit_code)


def print_refusal(message: str, *, code: str, hint: str | None = None) -> None:
    """A refusal as JSON, on standard error."""
    refusal = {"code": code, "message": str(message), "hint": hint}
    sys.stderr.write(json.dumps(refusal, ensure_ascii=False) + "\n")


def wrong_usage(message: str) -> NoReturn:
    """Refuse what was typed and end the command."""
    fail(message, code="wrong_usage", exit_code=USAGE)


def tell(sentence: str, *, as_json: bool, **facts: Any) -> None:
    """Say in a sentence what was done where there is nothing to show; as JSON, its facts."""
    if as_json:
        show(facts, as_json=True)
    else:
        console.print(sentence, markup=False, highlight=False)


def show_line(value: Mapping[str, Any]) -> None:
    """One JSON object on one line, at once: for commands that print as things happen."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def show(value: Any, *, as_json: bool, columns: Mapping[str, str] | None = None, title: str | None = None) -> None:
    """Print an answer: JSON when asked, else a table (`columns`: field → heading) or field by field."""
    if as_json:
        sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        console.print(_table(value, columns, title) if value else "[dim]nothing yet[/dim]")
    elif isinstance(value, Mapping):
        _print_fields(value, columns)
    elif value is not None:
        console.print(value)


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None, title: str | None) -> Table:
    fields = columns or {key: key for key in rows[0]}
    table = Table(*fields.values(), title=title, header_style="bold")
    for row in rows:
        table.add_row(*(_cell(row.get(field)) for field in fields))
    return table


def _print_fields(value: Mapping[str, Any], columns: Mapping[str, str] | None) -> None:
    fields = columns or {key: key for key in value}
    width = max((len(heading) for heading in fields.values()), default=0)
    for field, heading in fields.items():
        console.print(f"[bold]{heading:<{width}}[/bold]  {_cell(value.get(field))}", highlight=False)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (list, dict)):
        return escape(json.dumps(value, ensure_ascii=False, default=str))
    return escape(str(value))
