"""`heliu top` from the command line: live, or one look for programs."""

from typing import Any

from heliu.top.seen import Refused, asking, look
from kit.cli import REFUSED, SIGNED_OUT, UNREACHABLE, fail, remote, show

HINTS = {0: ("unreachable", "start it: heliu up", UNREACHABLE), 401: ("signed_out", "sign in: heliu login", SIGNED_OUT)}


def top(*, once: bool, as_json: bool, every_seconds: float) -> None:
    """Show the platform until `q`, or print one look. Ends the command when the first look is refused."""
    with remote(timeout_seconds=10) as client:
        ask = asking(client)
        try:
            seen = look(ask)
        except Refused as refused:
            code, hint, exit_code = HINTS.get(refused.status, ("refused", None, REFUSED))
            fail(str(refused), hint=hint, code=code, exit_code=exit_code)
        if as_json:
            show(seen, as_json=True)
        elif once:
            _print(seen)
        else:
            from heliu.top.app import Top

            Top(lambda: look(ask), every_seconds=every_seconds).run()


def _print(seen: dict[str, Any]) -> None:
    from heliu.top.app import TABLES, rows_of

    for name, rows in rows_of(seen).items():
        headings = {str(number): heading for number, heading in enumerate(TABLES[name])}
        shown = [{str(number): cell for number, cell in enumerate(row)} for row in rows]
        show(shown, as_json=False, columns=headings, title=name)
