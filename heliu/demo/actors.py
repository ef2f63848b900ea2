"""Who plays in the demo. Their accounts are made on the first run and found again in `<home>/demo.json` (0600)."""

import secrets
from pathlib import Path

from pydantic import BaseModel, ValidationError

from kit.errors import Refused

STUDIO = "九灯数字内容工作室 (Nine Lanterns Studio, a demo)"
USCC = "91420100DEMR000012"
"""Of nobody: its check character is right, its organisation code is made up."""
RIVAL = "对岸工作室 (Other Bank Studio, a demo)"
RIVAL_USCC = "91420100DEMR000038"
MISTYPED_USCC = "91420100DEMR000026"
"""Another made-up one whose check character is wrong."""


class Account(BaseModel):
    """Somebody who can sign in."""

    email: str
    password: str


class Cast(BaseModel):
    """Everything the demo has to remember; it holds passwords and a key of the demo's own accounts only."""

    administrator: Account | None = None
    owner: Account | None = None
    developer: Account | None = None
    firm_id: str | None = None
    doubtful_firm_id: str | None = None
    rival: Account | None = None
    key_id: str | None = None
    key: str | None = None
    programme_id: str | None = None
    voucher_id: str | None = None
    deployment_id: str | None = None
    runs: int = 0


class Memory:
    """The cast on disk.

    An account is saved before it is used, an id after it is known: whatever an interrupted run did without coming to
    save it, the next run finds on the platform.
    """

    def __init__(self, home: Path) -> None:
        self._file = home / "demo.json"
        try:
            self.cast = Cast.model_validate_json(self._file.read_text())
        except FileNotFoundError:
            self.cast = Cast()
        except ValidationError as error:
            raise Refused(
                f"{self._file.resolve()} is damaged ({error.error_count()} errors)",
                code="demo_memory",
                hint="remove it together with the state beside it, or choose another HELIU_HOME",
            ) from None

    def save(self) -> None:
        """Write it, readable by its owner only, whole or not at all."""
        draft = self._file.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text(self.cast.model_dump_json(indent=2))
        draft.replace(self._file)


def new_account(name: str) -> Account:
    """An account nobody else can guess."""
    return Account(email=f"{name}@lantern-studio.example", password=secrets.token_urlsafe(18))
